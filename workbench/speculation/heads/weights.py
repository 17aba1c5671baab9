"""Weight files of trained parts: safetensors with the facts about the target they belong to.

A part reads the target's hidden states, so it is worth nothing to another model. Its file therefore names the target,
with a probe: a few numbers of its hidden state after a fixed text, which tell it apart whatever dtype it is loaded in.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from workbench.engine.model import LanguageModel, kept
from workbench.errors import BadInput
from workbench.models.checkpoint import first_line
from workbench.models.loading import PRETRAINED
from workbench_kernels.native import cache_folder

EMBEDDED = PRETRAINED / "heads"
NUMBERS = 24  # of the probe
CLOSE = 0.1  # relative distance of two probes of one model: rounding to bf16 costs about 0.01

Module = TypeVar("Module", bound=nn.Module)


def probe(lm: LanguageModel) -> list[float]:
    """Evenly spread entries of the model's final hidden state after eight fixed tokens; empty if it shows none."""

    def read() -> list[float]:
        ids = [(7 * i + 3) % lm.vocab_size for i in range(8)]
        state = lm.forward(ids, range(8), lm.new_store(), logits_at="last", want=("hidden",)).hidden[-1].float()
        return [round(value, 5) for value in state[:: max(1, len(state) // NUMBERS)][:NUMBERS].tolist()]

    return kept(lm, ("probe",), read) if "hidden" in lm.gives else []


def alike(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether two probes are of one model."""
    x, y = torch.tensor(ours), torch.tensor(theirs)
    return x.shape == y.shape and ((x - y).norm() <= CLOSE * y.norm().clamp_min(1e-6)).item()


def save(
    file: Path, kind: str, module: nn.Module, lm: LanguageModel, shape: dict[str, Any], facts: dict[str, Any]
) -> Path:
    """Write a part in fp16. shape: the arguments its class is made with; facts: recipe and figures, for the reader."""
    metadata = {
        "kind": kind,
        "target": lm.name,
        "vocabulary": str(lm.vocab_size),
        "probe": json.dumps(probe(lm)),
        "shape": json.dumps(shape),
        "facts": json.dumps(facts),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.half().cpu().contiguous() for name, t in module.state_dict().items()}, file, metadata)
    return file


@cache
def find(kind: str, weights: str) -> Path:
    """The file of a part: "embedded" is what ships with the embedded target, a directory holds <kind>.safetensors, as
    does what `workbench models make NAME` has made under that name."""
    made = cache_folder("parts") / weights
    place = EMBEDDED if weights == "embedded" else made if made.is_dir() else Path(weights).expanduser()
    return place if place.suffix == ".safetensors" else place / f"{kind}.safetensors"


def load(kind: str, make: Callable[..., Module], weights: str, lm: LanguageModel) -> Module:
    """The part `kind` for a target, on its device and in its dtype; one object per model and file.

    make: its class. Raises BadInput, naming the command that trains one, where the file is missing, holds another
    kind of part, or belongs to another target.
    """
    file, made = find(kind, weights).absolute(), ()
    with suppress(OSError, ValueError):
        made = (file.stat().st_mtime_ns, file.stat().st_size)
    return kept(lm, (kind, file, made), lambda: _load(kind, make, weights, file, lm))


def _load(kind: str, make: Callable[..., Module], weights: str, file: Path, lm: LanguageModel) -> Module:
    remedy = f"train it: python -m workbench.training {kind} --target {lm.name} --out DIR, then weights=DIR"
    if not (ours := probe(lm)):
        raise BadInput(f"{lm.name!r} shows no hidden states, which {kind!r} needs")
    try:
        with safe_open(file, "pt") as opened:
            facts = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, not a dict
    except (OSError, ValueError, SafetensorError):
        raise BadInput(f"weights={weights!r}: no {kind} weights in {str(file)!r}; {remedy}") from None
    if facts.get("kind") != kind:
        raise BadInput(f"weights={weights!r}: {file.name} holds {facts.get('kind')!r}, not {kind!r}; {remedy}")
    try:
        theirs, size, target = json.loads(facts["probe"]), int(facts["vocabulary"]), facts["target"]
        fits = size == lm.vocab_size and alike(ours, theirs)
        module = _made(make, json.loads(facts["shape"]), tensors) if fits else None
    except Exception as error:  # whatever its metadata and its tensors lack of each other
        raise BadInput(f"weights={weights!r}: {file.name} is damaged ({first_line(error)}); {remedy}") from None
    if module is None:
        raise BadInput(f"weights={weights!r}: {kind} was trained for {target!r}, not {lm.name!r}; {remedy}")
    return module.to(lm.device, lm.dtype).eval().requires_grad_(False)


def _made(make: Callable[..., Module], shape: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Module:
    """A module with its weights; ValueError where they are not its own, before it takes any memory."""
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in make(**shape).state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in tensors.items()}:
        raise ValueError("its tensors are not those of its shape")
    module = make(**shape)
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return module
