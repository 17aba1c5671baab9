"""A cache for a text that was edited: keys and values of the tokens that stay, at their new places.

Between two places of rotary positions a key differs by one rotation, whatever the token; a value does not differ. So
what lies behind an edit need not be read again: its keys are turned, all by the same angle. They are always turned from
where they were computed (`Turned` keeps those keys), so that text put back has the keys that it had, bit by bit. What
this leaves out is all that the changed tokens would have said to the layers above the first.

"Let the Code LLM Edit Itself When You Edit the Code" (https://arxiv.org/abs/2407.03157; no official code found).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from workbench.cache.protocol import Dress, Segment
from workbench.cache.rotation import Rotation
from workbench.cache.store import PlainStore

Tensors = list[torch.Tensor]


class Turned(NamedTuple):
    """Tokens `start` to `stop` of a store were computed `by` tokens before where they lie, with these keys [Hk, n, D]
    of every layer."""

    start: int
    stop: int
    by: int
    k: Tensors


class Kept(NamedTuple):
    """Tokens that go on at position `at`: keys as computed and values of every layer; `by` how many tokens the keys are
    turned from there."""

    at: int
    by: int
    k: Tensors
    v: Tensors
    rotation: Rotation | None

    @property
    def count(self) -> int:
        return self.k[0].shape[1]

    def behind(self, k: Sequence, v: Sequence, held: int) -> tuple[Tensors, Tensors]:
        """The keys and values of every layer, behind the first `held` slots of others where there are any."""
        own = [self.rotation.rotation(x, self.by) if self.by else x for x in self.k]
        if held:
            own = [torch.cat([old[:, :held], new], 1) for old, new in zip(k, own, strict=True)]
        return own, [torch.cat([old[:, :held], new], 1) if held else new for old, new in zip(v, self.v, strict=True)]

    def origin(self) -> tuple[Turned, ...]:
        """Where turned keys came from."""
        return (Turned(self.at, self.at + self.count, self.by, [x.clone() for x in self.k]),) if self.by else ()

    def events(self) -> list[dict[str, Any]]:
        """What the trace says of it, of all layers at once."""
        where = {"positions": [[self.at, self.count]], "reason": "kept"}
        size = sum(x.nbytes for x in (*self.k, *self.v))
        turned = [{"op": "rerotate", **where, "destination": self.by, "bytes": sum(x.nbytes for x in self.k)}]
        return [{"op": "splice", **where, "bytes": size}, *(turned if self.by else ())]


def spliced(
    store: PlainStore, blocks: Sequence[tuple[int, int, int]], rotation: Callable[[], Rotation]
) -> PlainStore:
    """A store for the same model that has kept (start, stop, to): tokens `start` to `stop` of this one, from `to` on;
    in order, as far as the store holds them. What lies between is to be read.

    rotation: gives that of the model's keys, where a block has moved.
    """
    kept, inexact = [], []
    for start, stop, to in blocks:
        stop = min(stop, store.length)
        cuts = {start, stop, *(at for one in store.turned for at in one[:2] if start < at < stop)}
        ends = sorted(cuts) if start < stop else []
        kept += [_kept(store, a, b, a - start + to, rotation) for a, b in zip(ends, ends[1:], strict=False)]
        since = to if to else store.inexact
        inexact += [since] if ends and since is not None and since < to + stop - start else []
    new = PlainStore(len(store._run.k))
    new.kept = tuple(kept)
    new.inexact = min(inexact, default=None)
    new.join()
    return new


def side_by_side(
    stores: Sequence[PlainStore], start: int, temperature: float = 1.0, scale: float = 1.0
) -> list[Segment]:
    """What several stores hold behind the same first `start` tokens, as one segment for every layer; all stay at the
    positions where they were read.

    "APE: Faster and Longer Context-Augmented Generation via Adaptive Parallel Encoding"
    (https://arxiv.org/abs/2502.05431; https://github.com/Infini-AI-Lab/APE).
    """
    keys, values = ([columns(store, name, start, store.length) for store in stores] for name in ("k", "v"))
    device = keys[0][0].device
    where = torch.cat([torch.arange(start, store.length, device=device) for store in stores])
    dress = None if temperature == scale == 1 else Dress(temperature, scale)
    return [Segment(torch.cat(k, 1), torch.cat(v, 1), positions=where, dress=dress)
            for k, v in zip(zip(*keys, strict=True), zip(*values, strict=True), strict=True)]  # fmt: skip


def _kept(store: PlainStore, start: int, stop: int, to: int, rotation: Callable[[], Rotation]) -> Kept:
    before = next((one for one in store.turned if one.start <= start < one.stop), None)
    k, v = (columns(store, name, start, stop) for name in ("k", "v"))
    by = to - start
    if before is not None:
        by += before.by
        k = [x[:, start - before.start : stop - before.start] for x in before.k]
    return Kept(to, by, k, v, rotation() if by else None)


def columns(store: PlainStore, name: str, start: int, stop: int) -> Tensors:
    """Keys or values ("k" or "v") of some tokens, [Hk, stop - start, D] of every layer."""
    found = []
    for layer, own in enumerate(getattr(store._run, name)):
        pieces = [getattr(piece[layer], name) for piece in store.trunk]
        whole = torch.cat([*pieces, *([] if own is None else [own[:, : store.held]])], 1) if pieces else own
        found.append(whole[:, start:stop])
    return found


def restored(k: Tensors, v: Tensors, count: int) -> PlainStore:
    """A store that holds the first `count` tokens of these keys and values of every layer."""
    new = PlainStore(len(k))
    new.kept = (Kept(0, 0, [x[:, :count] for x in k], [x[:, :count] for x in v], None),)
    new.join()
    return new
