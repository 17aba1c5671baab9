"""Verification of drafted trees on the device: which nodes stand, and which token follows them.

Node 0 is the root, whose token stands already. A DIST node was drawn, without replacement, from the proposal row of its
parent. A POINT node was put there by any other rule. Siblings are tested in order of node number, DIST before POINT. A
POINT node that repeats a sibling's token is not tested.

A child x of a proposal row is accepted with probability min(1, p(x)/q(x)), else p <- norm((p - q)+) and x leaves q; a
POINT child with probability p(x), else p(x) <- 0. The token after the path is a seeded draw from what is left of p.

Sources: "Fast Inference from Transformers via Speculative Decoding"; "SpecInfer"; "Sequoia" (siblings without
replacement).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from workbench_kernels.dispatch import DTYPES, Choice, decide
from workbench_kernels.verification import reference

__all__ = ["DIST", "FATES", "POINT", "REASONS", "SOURCES", "Outcome", "choose", "verify"]

POINT, DIST = 0, 1
FATES = ("unused", "accepted", "rejected", "sibling_won", "parent_rejected", "pruned")
REASONS = (None, "ratio")
SOURCES = ("bonus", "residual", "target")
TRITON_NODES = 128
TRITON_DTYPES = (torch.float64, *DTYPES)


class Outcome(NamedTuple):
    """What became of B trees of N nodes.

    Attributes
    ----------
    path: [B, N] int32, accepted nodes from below the root on, -1 behind them. length: [B] int32, how many.
    token: [B] int64, what the target adds after the path.
    source: [B] int32, index into SOURCES: `bonus` (the path reached a leaf), `residual` (drawn from what rejections
        left) or `target` (nothing was drafted).
    fates, reasons: [B, N] int32, indices into FATES and REASONS; the root and absent nodes are `unused`.
    us: [B, N] float64, uniform numbers of the tests made, NaN elsewhere.
    implementation: `triton` or `torch`, what computed it.
    """

    path: Tensor
    length: Tensor
    token: Tensor
    source: Tensor
    fates: Tensor
    reasons: Tensor
    us: Tensor
    implementation: str


def verify(
    logits: Tensor, tokens: Tensor, parents: Tensor, depths: Tensor, kinds: Tensor, rows: Tensor, positions: Tensor,
    proposals: Tensor, seed: int, width: int, implementation: str = "auto",
) -> Outcome:  # fmt: skip
    """Verify B trees of at most N nodes at once.

    Parameters
    ----------
    logits: [B, N, V], row n the target's distribution after node n, as logits or log-probabilities; -inf marks tokens
        that are cut. The row of a node that is there must be a distribution: no NaN, no +inf, one token kept.
    tokens, parents, depths, kinds: [B, N] int32 (other integers are converted). parents: -1 for the root, smaller than
        the node's own number; nodes behind the root with parent -1 are absent. depths: 0 for the root. kinds: POINT
        or DIST.
    rows: [B, N] int32, the proposal row of the children of each node, -1 for none. No more siblings may be drawn from a
        row than it has tokens.
    positions: [B] int64, absolute position of the root's children.
    proposals: [M, V] log-probabilities that DIST nodes were drawn from.
    seed: any int; the noise is that of `distribution.sample`, with purposes of its own for tests and residuals.
    width: the largest number of siblings, or more.
    implementation: `triton`, `torch`, or `auto`, which takes Triton on a GPU where it can, in 5 + width launches.

    Raises ValueError where an argument does not fit, RuntimeError with the reason where Triton is asked for and
    cannot run.
    """
    tree = _tree(logits, tokens, parents, depths, kinds, rows, positions)
    cols = logits.shape[2]
    if proposals.ndim != 2 or proposals.shape[1] != cols or not proposals.is_floating_point():
        raise ValueError(f"verify: expected floating proposals [M, {cols}], got {list(proposals.shape)}")
    if width < 0:
        raise ValueError(f"verify: expected a width of 0 or more, got {width}")
    chosen = choose(logits, proposals, implementation).name
    if chosen == "torch":
        return Outcome(*reference.verify(logits, tree, proposals, seed), chosen)
    from workbench_kernels.verification import kernel

    return Outcome(*kernel.verify(logits, tree, proposals, seed, max(width, 1)), chosen)


def choose(logits: Tensor, proposals: Tensor, implementation: str = "auto") -> Choice:
    """`triton` or `torch`, and why: what would verify trees over logits [B, N, V]. Raises as `verify` does."""
    return decide(logits.device.type, lambda: _refusal(logits, proposals), implementation, "tree")


def _refusal(logits: Tensor, proposals: Tensor) -> str | None:
    for name, tensor in (("logits", logits), ("proposals", proposals)):
        if tensor.dtype not in TRITON_DTYPES:
            return f"it takes 16 to 64-bit floats, and the {name} are {str(tensor.dtype).removeprefix('torch.')}"
    if logits.shape[1] > TRITON_NODES:
        return f"it takes at most {TRITON_NODES} nodes, and the trees have {logits.shape[1]}"
    return None


def _tree(logits, tokens, parents, depths, kinds, rows, positions) -> tuple[Tensor, ...]:
    """The columns as contiguous int32, and the positions."""
    if logits.ndim != 3 or not logits.numel() or not logits.is_floating_point():
        raise ValueError(f"verify: expected floating logits [B, N, V], got {logits.dtype} {list(logits.shape)}")
    shape = logits.shape[:2]
    columns = {"tokens": tokens, "parents": parents, "depths": depths, "kinds": kinds, "rows": rows}
    for name, column in (columns | {"positions": positions}).items():
        wanted, kind = (shape[:1], "int64") if name == "positions" else (shape, "integer")
        right = column.dtype == torch.int64 if kind == "int64" else not column.dtype.is_floating_point
        if column.shape != wanted or not right or column.device != logits.device:
            raise ValueError(
                f"verify: expected {kind} {name} {list(wanted)} on {logits.device}, "
                f"got {column.dtype} {list(column.shape)} on {column.device}"
            )
    return (*(column.to(torch.int32).contiguous() for column in columns.values()), positions.contiguous())
