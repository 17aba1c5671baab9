"""Means to find faults in kernels: guarded allocations, and kernels broken on purpose that a check must find."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.kernels.checks import GUARD

UNWRITTEN = -7


class Allocations:
    """While entered, `torch.empty` gives NaN-filled (integers: -7) tensors in the middle of larger ones."""

    def __init__(self) -> None:
        self.around: list[torch.Tensor] = []
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> "Allocations":
        self.patch.setattr(torch, "empty", self._empty)
        return self

    def __exit__(self, *_) -> None:
        self.patch.undo()

    def _empty(self, *shape, dtype: torch.dtype = torch.float32, device=None) -> torch.Tensor:
        shape = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        fill = torch.nan if dtype.is_floating_point else UNWRITTEN
        around = torch.full((shape.numel() + 2 * GUARD,), fill, dtype=dtype, device=device)
        self.around.append(around)
        return around[GUARD : GUARD + shape.numel()].view(shape)

    def assert_untouched(self) -> None:
        """Nothing was stored outside of any tensor."""
        assert self.around
        for around in self.around:
            pads = torch.cat([around[:GUARD], around[-GUARD:]])
            intact = pads.isnan() if pads.is_floating_point() else pads == UNWRITTEN
            assert intact.all(), "a kernel wrote outside its tensor"


def broken(module: ModuleType, old: str, new: str, folder: Path) -> ModuleType:
    """The module again, from its source with `old` (which must occur once) replaced by `new`."""
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1, f"{source.count(old)} times in {module.__name__}: {old}"
    path = folder / f"broken_{module.__name__.rpartition('.')[2]}.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


def entry(module: ModuleType, name: str, types: dict, constants: dict, warps: int = 4) -> tuple:
    """An argument of `aot.compile_all`: types (named tuples of types) by name, else int32 pointers and integers."""
    arguments = getattr(module, name).arg_names
    types = {name: kind._asdict() if isinstance(kind, tuple) else kind for name, kind in types.items()}
    signature = {a: types.get(a, "*i32" if a.endswith("_ptr") else "i32") for a in arguments}
    return module.__name__, name, signature | dict.fromkeys(constants, "constexpr"), constants, {"num_warps": warps}
