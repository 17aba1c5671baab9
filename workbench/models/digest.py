"""The digest of a model's weights that stands in traces: SHA-256 over its tensors, told anew where they were changed.

Of a model from files it is that of the files, whatever dtype it was loaded in; once computed it is kept by path, size
and time (for large files also in the user's cache folder). Of a model made or changed in memory it is that of the
weights as they are, if they are not too many.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from zlib import crc32

import numpy as np
import torch
from torch import nn

from workbench.errors import BadInput
from workbench.models import checkpoint
from workbench.models.checkpoint import Entry
from workbench_kernels.native import cache_folder

CHEAP = 2**30  # bytes of a model in memory that are hashed; of larger ones the digest is null
LARGE = 2**27  # bytes of files whose digest is kept beyond the process
SAMPLES = 2**10  # numbers of a weight that are looked at to see whether it was changed, at least one of every row

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_known: dict[tuple, str] = {}


class Digest:
    """The digest of a model, remembered as long as its weights are what they were. files: what it was loaded from."""

    def __init__(self, model: nn.Module, files: Mapping[str, Entry] | None = None):
        self._files = files or {}
        self._facts = _facts(self._files)
        self._mark = self._seen = _mark(model)
        self._value: str | None = None
        self._loaded = bool(files)  # the weights are still those of the files

    def look(self, model: nn.Module) -> bool:
        """Whether the weights are others than at the last look."""
        before, self._seen = self._seen, _mark(model)
        return self._seen != before

    def of(self, model: nn.Module) -> str | None:
        """64 hex digits, or None for a large model whose weights are not those of files."""
        now = _mark(model)
        if now != self._mark:
            self._loaded, self._value, self._mark = False, None, now
        if self._value is None:
            whole = self._loaded and self._facts == _facts(self._files)
            self._value = _of_files(self._files, self._facts) if whole else _of_memory(model)
        return self._value


def _facts(files: Mapping[str, Entry]) -> tuple:
    """Path, size and time of files, see `checkpoint.facts`; () where one is gone."""
    with suppress(OSError):
        return tuple(fact[:3] for fact in checkpoint.facts({entry.file for entry in files.values()}))
    return ()


def _of_files(files: Mapping[str, Entry], facts: tuple) -> str:
    if facts not in _known:
        large = sum(size for _, size, *_ in facts) > LARGE
        kept = cache_folder("digests") / hashlib.sha256(repr(facts).encode()).hexdigest() if large else None
        found = kept.read_text() if kept and kept.is_file() else ""
        _known[facts] = found if len(found) == 64 else checkpoint.digest(files)
        if kept and found != _known[facts]:
            from workbench.trace.files import made_folder, write_whole  # brings pandas along

            with suppress(BadInput):  # a folder that cannot be written costs the next process the time
                write_whole(made_folder(kept.parent) / kept.name, _known[facts].encode())
    return _known[facts]


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights and persistent buffers, each once, under the name it has first."""
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach()


def _of_memory(model: nn.Module) -> str | None:
    tensors = sorted(_tensors(model))
    if sum(t.nbytes for _, t in tensors) > CHEAP or any(t.is_meta for _, t in tensors):
        return None
    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(f"{name} {_NAMES.get(tensor.dtype, tensor.dtype)} {list(tensor.shape)}\n".encode())
        total.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


@torch.inference_mode()
def _mark(model: nn.Module) -> tuple:
    """Sums over some of the numbers of every weight: cheap, and another one where a row of a weight is changed, by
    whatever means."""
    facts, far = [], []
    for name, tensor in _tensors(model):
        told = None
        if tensor.numel() and not tensor.is_meta and tensor.element_size() in _WORDS:
            flat = tensor.reshape(-1).view(_WORDS[tensor.element_size()])
            row = tensor.shape[-1] if tensor.dim() else 1
            some = flat[:: max(1, min(len(flat) // SAMPLES, row - 1))]  # of every row another column
            if tensor.device.type == "cpu":
                told = crc32(np.ascontiguousarray(some.numpy()))
            else:
                far.append((some.long() * torch.arange(1, len(some) + 1, device=some.device)).sum())
        facts.append((name, tensor.dtype, tuple(tensor.shape), tensor.is_meta, told))
    devices = sorted({total.device for total in far}, key=str)
    return (*facts, *(tuple(torch.stack([t for t in far if t.device == d]).tolist()) for d in devices))
