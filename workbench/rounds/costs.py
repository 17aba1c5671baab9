"""What a forward costs, from the model's shapes and what it reads of its cache; what is kept between rounds."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from workbench.engine.model import LanguageModel


class Reads(NamedTuple):
    """What a forward reads of a cache: raw slots, coded slots, bytes of the coded ones; trunk: the slots of each piece
    that several sequences may share."""

    raw: int
    coded: int = 0
    coded_bytes: int = 0
    trunk: Mapping[int, int] = MappingProxyType({})

    @property
    def context(self) -> int:
        return self.raw + self.coded + sum(self.trunk.values())


def forward_costs(
    model: LanguageModel, parts: Sequence[tuple[int, Reads]], layers_run: int | None = None
) -> dict[str, Any]:
    """Operations and bytes of a forward, in proportion to the layers that ran: all for None. parts: how many rows of
    each sequence, and what they read; a piece of a trunk is read once."""
    layers_run = model.layers if layers_run is None else layers_run
    context, row_bytes = max(reads.context for _, reads in parts), model.kv_bytes()
    rows, trunk = sum(count for count, _ in parts), {k: n for _, reads in parts for k, n in reads.trunk.items()}
    raw = sum(reads.raw for _, reads in parts) + sum(trunk.values())
    counts = {
        "flops": sum(model.forward_flops(count, reads.context + count) for count, reads in parts),
        "weight_bytes": model.weights_read(rows),
        "kv_read_bytes": row_bytes * (raw + rows) + sum(reads.coded_bytes for _, reads in parts),
        "kv_write_bytes": row_bytes * rows,
    }
    share = layers_run / model.layers
    counts = {name: round(share * count) for name, count in counts.items()}
    return {"context": context, **counts, "layers_run": layers_run}


def held_bytes(memory: dict[str, Any]) -> int:
    """Bytes of the tensors and arrays that a decoder or drafter keeps between rounds, tuples and tables searched."""
    queue, total = list(memory.values()), 0
    while queue:
        held = queue.pop()
        if isinstance(held, torch.Tensor):
            total += held.untyped_storage().nbytes()
        elif isinstance(held, np.ndarray):
            total += held.nbytes
        elif isinstance(held, dict):
            queue += held.values()
        elif isinstance(held, tuple | list):
            queue += held
    return total


def ledgers(state: Any) -> dict[str, dict[str, list]]:
    """The cache columns of every role: of all hypotheses together, what they share counted once; the logical length is
    that of the longest."""
    if not state.hypotheses:
        return {role: runner.store.ledger() for role, runner in state.runners.items()}
    found, counted = {}, {}
    for one in (state, *(hypothesis.state for hypothesis in state.hypotheses.values())):
        for role, runner in one.runners.items():
            whole = found.setdefault(role, {})
            for name, column in runner.store.ledger(counted).items():
                both = {"logical_length": max, "bits_nominal": _first}.get(name, sum)
                if name in whole:
                    column = [both(pair) for pair in zip(whole[name], column, strict=True)]
                whole[name] = column
    return found


def _first(pair: tuple[float | None, float | None]) -> float | None:
    return pair[1] if pair[0] is None else pair[0]
