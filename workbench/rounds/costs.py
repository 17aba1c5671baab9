"""What a forward costs, from the model's shapes and what it reads of its cache; what is kept between rounds."""

from typing import Any, NamedTuple

import numpy as np
import torch

from workbench.engine.model import LanguageModel

__all__ = ["Reads", "forward_costs", "held_bytes"]


class Reads(NamedTuple):
    """What a forward reads of a cache: raw slots, coded slots, bytes of the coded ones."""

    raw: int
    coded: int = 0
    coded_bytes: int = 0


def forward_costs(model: LanguageModel, rows: int, reads: Reads, layers_run: int | None) -> dict[str, Any]:
    """Operations and bytes of a forward of `rows` rows, in proportion to the layers that ran: all for None."""
    layers_run = model.layers if layers_run is None else layers_run
    context, row_bytes = reads.raw + reads.coded, model.kv_bytes()
    counts = {
        "flops": model.forward_flops(rows, context + rows),
        "weight_bytes": model.weights_read(rows),
        "kv_read_bytes": row_bytes * (reads.raw + rows) + reads.coded_bytes,
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
