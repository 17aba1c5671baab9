"""Figures of rows of logits on a CPU, in one call of compiled code: what the torch functions beside it give."""

import ctypes
from typing import Any

from torch import Tensor, float32

from workbench_kernels.native import compiled


def code_for(logits: Tensor) -> Any:
    """What computes rows of logits here, or None: compiled code, float32 in one piece on a CPU."""
    if logits.dtype != float32 or logits.device.type != "cpu" or not logits.is_contiguous() or not logits.numel():
        return None
    try:
        return compiled()
    except RuntimeError:
        return None


def best(code: Any, logits: Tensor) -> tuple[list[int], bool]:
    """The most probable token of each row, the lowest id of several, and whether all logits are finite."""
    rows, count = logits.shape
    found = (ctypes.c_int64 * (2 * rows))()
    place = ctypes.addressof(found)
    code.row_best(logits.data_ptr(), rows, count, place, place + 8 * rows)
    return found[:rows], all(found[rows:])


def figures(code: Any, logits: Tensor, ids: list[int], top: int) -> list[list[float]]:
    """Of each row, for its token: entropy and variance of the surprisal in nats and nats squared, the token's
    log-probability and rank, the `top` largest log-probabilities, their ids, and how many tokens are not ruled out.
    logits: -inf where a token is. Raises IndexError for an id that the rows do not have."""
    rows, count = logits.shape
    if len(ids) != rows or not 0 <= min(ids) <= max(ids) < count:
        raise IndexError(f"ids: expected {rows} in [0, {count}), got {ids}")
    width = 5 + 2 * top
    found, tokens = (ctypes.c_double * (rows * width))(), (ctypes.c_int64 * rows)(*ids)
    code.row_figures(logits.data_ptr(), rows, count, ctypes.addressof(tokens), top, ctypes.addressof(found))
    return [found[at : at + width] for at in range(0, rows * width, width)]


def draw(code: Any, scores: Tensor, key: int) -> int:
    """The token of the largest sum of its score [V] and its noise under a `noise.reference.position_key`. Raises
    IndexError where no score is a number that can be drawn."""
    found = code.row_draw(scores.data_ptr(), len(scores), key)
    if found < 0:
        raise IndexError("scores: expected no NaN, and one at least that is not -inf")
    return found
