"""What the verification of a drafted tree means, in plain torch and float64: one tree after another, node by node."""

import torch
from torch import Tensor

from workbench_kernels.noise import gumbel, uniform

EMPTY = 1e-7  # a residual of less mass than this is float noise: the two distributions are the same
ACCEPTED, REJECTED, SIBLING_WON, PARENT_REJECTED, PRUNED = range(1, 6)
RATIO = 1
BONUS, RESIDUAL, TARGET = 0, 1, 2


def verify(logits: Tensor, tree, proposals: Tensor, seed: int) -> tuple:
    """logits [B, N, V]; tree: columns [B, N]. Returns what `Outcome` holds."""
    scores = logits.double().masked_fill(~(logits > -torch.inf), -torch.inf)
    trees, count, _ = scores.shape
    device = scores.device
    path = torch.full((trees, count), -1, dtype=torch.int32)
    fates, reasons = torch.zeros_like(path), torch.zeros_like(path)
    us = torch.full((trees, count), torch.nan, dtype=torch.float64)
    length, source = torch.zeros(trees, dtype=torch.int32), torch.zeros(trees, dtype=torch.int32)
    token = torch.zeros(trees, dtype=torch.int64)
    columns = [column.tolist() for column in tree]
    for b in range(trees):
        tokens, parents, depths, kinds, rows, position = (column[b] for column in columns)
        children = [children_of(node, tokens, parents, kinds) for node in range(count)]
        tested = {child for found in children for child in found}
        for node in range(count):
            if parents[node] >= 0:
                fates[b, node] = PARENT_REJECTED if node in tested else PRUNED
        node, walked = 0, []
        while True:
            place, found = position + depths[node], children[node]
            p = scores[b, node].softmax(-1)
            logq = proposals[rows[node]].double() if rows[node] >= 0 else None
            won, p = _test(p, logq, found, tokens, kinds, seed, place, us[b])
            for i, child in enumerate(found):
                lost = won is None or i < won
                fates[b, child] = REJECTED if lost else ACCEPTED if i == won else SIBLING_WON
                reasons[b, child] = RATIO if lost else 0
            if won is None:
                break
            node = found[won]
            walked.append(node)
        source[b] = RESIDUAL if found else BONUS if walked else TARGET
        support = (p > 0).nonzero()[:, 0]
        token[b] = support[(p[support].log() + gumbel(seed, "residual", place, support)).argmax()]
        length[b] = len(walked)
        path[b, : len(walked)] = torch.tensor(walked, dtype=torch.int32)
    return tuple(part.to(device) for part in (path, length, token, source, fates, reasons, us))


def children_of(node: int, tokens: list[int], parents: list[int], kinds: list[int] | list[bool]) -> list[int]:
    """In test order: DIST (a true kind) in draw order, then POINT; POINT copies of tokens held already are dropped."""
    found = [i for i, parent in enumerate(parents) if parent == node]
    order = [i for i in found if kinds[i]]
    held = {tokens[i] for i in order}
    for i in found:
        if not kinds[i] and tokens[i] not in held:
            held.add(tokens[i])
            order.append(i)
    return order


def accept(p: Tensor, q: Tensor | None, token: int, u: float) -> tuple[bool, Tensor]:
    """One acceptance test with uniform `u`: (accepted, the distribution that remains to be matched).

    p, q: [V] float64; q None for a POINT child. If rejecting would leave no mass, p equals q there: accept.
    """
    if (u if q is None else u * q[token]) < p[token]:
        return True, p
    if q is None:
        rest = p.clone()
        rest[token] = 0
    else:
        rest = residual(p, q)
    mass = rest.sum()
    return (True, p) if mass < EMPTY else (False, rest / mass)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """(p − q)+, not normalised."""
    return (p - q).clamp_min(0)


def without(logq: Tensor, token: int) -> Tensor:
    """The proposal of the next sibling, as logits: the drawn token removed, however little is left."""
    rest = logq.clone()
    rest[token] = -torch.inf
    return rest


def _test(p, logq, children, tokens, kinds, seed, place, us) -> tuple[int | None, Tensor]:
    """(place of the accepted child among the children or None, what is left of p)."""
    for turn, child in enumerate(children):
        token = tokens[child]
        q = logq.softmax(-1) if kinds[child] else None
        us[child] = u = uniform(seed, "accept", place, turn)
        accepted, p = accept(p, q, token, u)
        if accepted:
            return turn, p
        if q is not None:
            logq = without(logq, token)
    return None, p
