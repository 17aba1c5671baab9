"""The cache store: committed tokens in one rectangular run per layer, tokens in flight staged behind them.

Life of a round: `begin` opens a forward of R rows, each layer `stage`s its new keys and values and attends to
`segments`, `end` closes it; several forwards may follow, each seeing the staged rows its mask allows; `commit(rows)`
keeps the chosen staged rows, in order, and ends the round, `discard` keeps none. Rejecting a draft therefore costs
nothing.

A forward may run some layers only. Every layer counts the rows it has staged, and shows no more of them; a later
forward of other layers over the same positions stages into the same slots. A row is committed once it is in all.

A fork copies nothing: both sides share the run, and each knows its own length. Whoever stages where another has
committed, or is just now staging (branches may run in threads), makes its own copy. Appending to slots that nobody
else uses is no conflict. Where many forks are to go on side by side, `share` first makes what is committed a trunk:
it stays where it is, each fork begins a run of its own behind it, and one forward of several reads it once for all.
"""

import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from workbench.cache.places import index
from workbench.cache.protocol import MANY, CacheStore, Segment

if TYPE_CHECKING:
    from workbench.cache.splice import Kept, Turned

_SLOTS = 64  # capacity grows in multiples of this, and at least by half
_SHARED = 128  # slots of a run from which on `share` keeps it whole


_claim = threading.Lock()


def _nobody() -> None:
    """The writer of a run that nobody writes to."""


class _Run:
    """Keys and values [Hk, capacity, D] of every layer.

    `frontier` counts the slots somebody has committed to; `writer` refers to the store with rows in flight behind it.
    """

    __slots__ = ("_sizes", "capacity", "frontier", "k", "v", "writer")

    def __init__(self, layers: int):
        self.k: list[torch.Tensor | None] = [None] * layers
        self.v: list[torch.Tensor | None] = [None] * layers
        self.capacity = 0
        self.frontier = 0
        self.writer = _nobody
        self._sizes: list[tuple[int, int]] | None = None

    def set(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """The buffers of a layer."""
        self.k[layer], self.v[layer], self._sizes = k, v, None

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Of every layer the bytes of a slot, and how many there is room for."""
        if self._sizes is None:
            self._sizes = [(0, 0) if k is None else (_slot_bytes(k, v), k.stride(0) // k.shape[2])
                           for k, v in zip(self.k, self.v, strict=True)]  # fmt: skip
        return self._sizes

    @classmethod
    def of(cls, k: list, v: list, length: int, capacity: int) -> "_Run":
        """A run of its own with the first `length` of these keys and values of every layer, where there are any."""
        run = cls(len(k))
        run.capacity, run.frontier = capacity, length
        for target, source in ((run.k, k), (run.v, v)):
            for layer, x in enumerate(source):
                if x is not None:
                    target[layer] = x.new_empty(x.shape[0], capacity, x.shape[2])
                    target[layer][:, :length] = x[:, :length]
        return run

    def copy(self, length: int, capacity: int) -> "_Run":
        """A run of its own with the first `length` slots; the frontier is that length."""
        return type(self).of(self.k, self.v, length, capacity)


class PlainStore(CacheStore):
    """Every committed token in the model's own dtype: one rectangular run per layer, behind the trunk where there is
    one."""

    def __init__(self, layers: int):
        self._run = _Run(layers)
        self.length = 0
        self.held = 0  # committed slots of the run: all tokens here, fewer where a policy evicts
        self.trunk: tuple[Sequence[Segment], ...] = ()
        self.staged = self.behind = 0
        self._rows = 0
        self._counts: dict[int, int] = {}  # layer -> rows it has staged
        self._positions: list[int] = []
        self._visible: torch.Tensor | None = None
        self._masks: dict[int | None, torch.Tensor | None] = {}
        self.kept: tuple[Kept, ...] = ()  # of another text: joined once all tokens before them are committed
        self.turned: tuple[Turned, ...] = ()  # where keys lie that were joined elsewhere than they were computed
        self.inexact: int | None = None  # from that position on it was read behind another text, or in parts
        self._events: list[dict[str, Any]] = []

    def rows_left(self, length: int) -> int:
        return self.kept[0].at - length if self.kept else MANY

    def begin(
        self,
        positions: Sequence[int],
        visible: torch.Tensor | None = None,
        layers: Sequence[int] | None = None,
        tokens: Sequence[int] | torch.Tensor | None = None,
    ) -> None:
        """Open a forward of R rows at absolute `positions` over `layers`, by default all; tokens: their ids, where they
        are known.

        visible: [R, staged rows before + R] bool, what each row sees of the staged rows, itself included; None means
        a chain: everything staged before, and the rows of this forward in order. Only rows that these layers have
        staged are visible. Rows staged in other layers alone must lie at the positions that this forward fills.

        Raises RuntimeError where the layers have staged different numbers of rows, or rows in flight that this
        forward comes to lie at other positions.
        """
        counts = {self._counts.get(layer, 0) for layer in (range(len(self._run.k)) if layers is None else layers)}
        if len(counts) != 1:
            raise RuntimeError(f"begin: the layers to run have staged {sorted(counts)} rows; all must have as many")
        (behind,) = counts
        if self.kept and len(positions) and max(positions) >= self.kept[0].at:
            raise RuntimeError(f"begin: tokens from {self.kept[0].at} on are kept, got a row at {max(positions)}")
        flying = self._positions[behind : behind + len(positions)]
        if flying != list(positions[: len(flying)]):
            raise RuntimeError(f"begin: the next rows in flight are at positions {flying}, got {list(positions)}")
        needed = self.held + behind + len(positions)
        with _claim:
            run = self._run
            if run.frontier != self.held or needed > run.capacity or run.writer() not in (None, self):
                capacity = run.capacity
                if needed > capacity:
                    capacity = -(-max(needed, capacity * 3 // 2) // _SLOTS) * _SLOTS
                self._run = run.copy(self.held + self.staged, capacity)
                self._run.frontier = self.held
                if run.writer() is self:
                    run.writer = _nobody
            if self._run.writer() is not self:
                self._run.writer = weakref.ref(self)
        self.behind, self._rows = behind, len(positions)
        self._positions += positions[len(flying) :]
        self._visible = visible
        self._masks.clear()

    def stage(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put the new rows' keys [Hk, R, D] and values [Hk, R, Dv] of one layer behind all it has staged before."""
        run, start = self._run, self.held + self.behind
        if run.k[layer] is None:
            room = (x.new_empty(x.shape[0], run.capacity, x.shape[2]) for x in (k, v))
            run.set(layer, *room)
        run.k[layer][:, start : start + self._rows] = k
        run.v[layer][:, start : start + self._rows] = v
        self._counts[layer] = self.behind + self._rows

    def end(self) -> None:
        """Close the forward: its rows now count as staged."""
        self.staged = self.behind = max(self._counts.values(), default=0)
        self._rows = 0
        del self._positions[self.staged :]

    def segments(self, layer: int, window: int | None = None, query: torch.Tensor | None = None) -> list[Segment]:
        """What this forward's rows attend to in a layer: the trunk, and one run behind it. `window`: keys less than
        that many positions back; query: the rows' own, [1, H, R, D], by which a reader may choose pages."""
        if window is not None and max(self._seen) < window:
            window = None
        return [*self._pieces(layer, window), self._own(layer, window)]

    def _pieces(self, layer: int, window: int | None) -> Iterator[Segment]:
        start = 0
        for piece in self.trunk:
            segment = piece[layer]
            if window is not None:
                rows = index(self._seen[-self._rows :], segment.k.device)
                where = segment.positions
                if where is None:
                    where = torch.arange(start, start + segment.k.shape[1], device=segment.k.device)
                segment = replace(segment, mask=rows[:, None] - where < window)
                start = int(where.max()) + 1
            yield segment

    def _own(self, layer: int, window: int | None) -> Segment:
        n = self.held + self._counts.get(layer, 0)
        k, v = self._run.k[layer][:, :n], self._run.v[layer][:, :n]
        if window is None and self._visible is None:
            if self._rows == 1:
                return Segment(k, v)
            if n == self._rows or self._unmasked(k):
                return Segment(k, v, causal=True)
        return Segment(k, v, self._mask(window, k.device, layer))

    @staticmethod
    def _unmasked(k: torch.Tensor) -> bool:
        """Whether a chain of rows behind a prefix goes without a mask: a GPU's quick kernels take none, a CPU's do."""
        return k.is_cuda

    @property
    def _seen(self) -> list[int]:
        """Positions of the staged slots up to this forward's own, which come last."""
        return self._positions[: self.behind + self._rows]

    def _mask(self, window: int | None, device: torch.device, layer: int) -> torch.Tensor:
        """[R, n] visibility of committed and staged slots, made once per forward."""
        if window not in self._masks:
            rows, staged = self._rows, self.behind + self._rows
            inner = self._visible
            if inner is None:
                inner = torch.ones(rows, staged, dtype=torch.bool).tril(staged - rows)
            mask = torch.cat([torch.ones(rows, self.held, dtype=torch.bool), inner.cpu()], 1)
            if window is not None:
                where = torch.tensor([*range(self.length - self.held, self.length), *self._seen])
                mask &= where[-rows:, None] - where[None, :] < window
            self._masks[window] = mask.to(device)
        return self._masks[window]

    @torch.inference_mode()
    def commit(self, rows: Sequence[int]) -> None:
        """Keep the staged rows `rows` (increasing, counted over the round's forwards) and end the round.

        Raises RuntimeError, and changes nothing, where a row has not been through all layers.
        """
        self._refuse_partial(rows)
        base, run = self.held, self._run
        if list(rows) != list(range(len(rows))):
            index = torch.tensor([base + row for row in rows], device=run.k[0].device)
            for tensors in (run.k, run.v):
                for tensor in tensors:
                    tensor[:, base : base + len(rows)] = tensor[:, index]
        if len(rows):  # else the buffer may be another branch's: its frontier stays
            self.length += len(rows)
            self.held += len(rows)
            run.frontier = self.held
        self.discard()
        self.join()

    def join(self) -> None:
        """Put tokens that were kept behind the committed ones, where it is their turn."""
        while self.kept and self.kept[0].at == self.length:
            (kept, *rest), run = self.kept, self._run
            self._run = _Run.of(*kept.behind(run.k, run.v, self.held), self.held + kept.count, self.held + kept.count)
            self.turned += kept.origin()
            self.kept = tuple(rest)
            self.length, self.held = self.length + kept.count, self.held + kept.count
            self._events += kept.events()

    def _refuse_partial(self, rows: Sequence[int]) -> None:
        counts = [self._counts.get(layer, 0) for layer in range(len(self._run.k))]
        if len(rows) and max(rows) >= min(counts):
            done = sum(count > max(rows) for count in counts)
            raise RuntimeError(f"commit: row {max(rows)} has been through {done} of {len(counts)} layers")

    def discard(self) -> None:
        """Forget everything staged."""
        if self._run.writer() is self:
            self._run.writer = _nobody
        self.staged = self.behind = self._rows = 0
        self._counts = {}
        self._positions = []
        self._visible = None
        self._masks.clear()

    def fork(self) -> "PlainStore":
        """A second store of the same committed tokens; nothing is copied until one of the two has to write."""
        self._refuse_staged("fork")
        new = self._empty()
        new._run, new.length, new.held, new.trunk = self._run, self.length, self.held, self.trunk
        new.kept, new.turned, new.inexact = self.kept, self.turned, self.inexact
        new._events = [*self._events]  # of what was joined before a round
        return new

    def drain(self) -> tuple[list[dict[str, Any]], dict[str, list], dict[str, list]]:
        found, self._events = self._events, []
        return found, {}, {}

    def _empty(self) -> "PlainStore":
        """A store of this kind, without a run."""
        return PlainStore(0)

    def _refuse_staged(self, what: str) -> None:
        if self.staged or self._rows:
            raise RuntimeError(f"{what} between rounds: rows are still staged")

    def share(self) -> None:
        """Make the run a piece of the trunk, unless it is so short that a copy costs less than another piece to read.

        Pieces behind the first are joined while the last is no shorter than the one before it, so they stay few.
        """
        self._refuse_staged("share")
        if self.held < _SHARED:
            return
        own = zip(self._run.k, self._run.v, strict=True)
        pieces = [*self.trunk, [Segment(k[:, : self.held], v[:, : self.held]) for k, v in own]]
        while len(pieces) > 2 and pieces[-2][0].k.shape[1] <= pieces[-1][0].k.shape[1]:
            if pieces[-2][0].positions is not None:
                break
            last, before = pieces.pop(), pieces.pop()
            pieces.append([Segment(torch.cat([a.k, b.k], 1), torch.cat([a.v, b.v], 1))
                           for a, b in zip(before, last, strict=True)])  # fmt: skip
        self.trunk, self._run, self.held = tuple(pieces), _Run(len(self._run.k)), 0

    def attach(self, pieces: Sequence[Segment], span: int, exact: bool) -> None:
        """Put a piece of the trunk behind what is committed, a segment for every layer, that takes `span` positions.
        exact: it is what reading one text would have given."""
        self._refuse_staged("attach")
        own = [Segment(k[:, : self.held], v[:, : self.held]) for k, v in zip(self._run.k, self._run.v, strict=True)]
        self.trunk = (*self.trunk, *([own] if self.held else []), pieces)
        self.inexact = self.length if self.inexact is None and not exact else self.inexact
        self._run, self.held, self.length = _Run(len(self._run.k)), 0, self.length + span

    def read_stats(self) -> tuple[int, int, int]:
        return self.held, 0, 0

    def ledger(self, counted: dict[int, int] | None = None) -> dict[str, list]:
        """Columns over layers: live slots, and bytes by kind as they lie in storage (free slots are `pad`).

        counted: what other stores have counted, with this one's from now on, which costs nothing again: by the address
        of a run's keys the slots of it, else by address or id of what it is.
        """
        columns, seen = self._ledger(counted), {} if counted is None else counted
        if self.turned:
            each = [[one.k[layer] for one in self.turned] for layer in range(len(self._run.k))]
            columns["note"] = [sum(k.nbytes for k in own if k.data_ptr() not in seen) for own in each]
            seen.update((k.data_ptr(), 1) for own in each for k in own)
        for where in (piece[0].positions for piece in self.trunk):
            if where is not None and where.data_ptr() not in seen:
                known = columns.setdefault("position", [0] * len(columns["payload"]))
                columns["position"], seen[where.data_ptr()] = [known[0] + where.nbytes, *known[1:]], 1
        return columns

    def _ledger(self, counted: dict[int, int] | None) -> dict[str, list]:
        if counted is None and not self.trunk:
            sizes = self._run.sizes
            staged = [self._counts.get(layer, 0) for layer in range(len(sizes))]
            return {
                "live_slots": [self.held if slot else 0 for slot, _ in sizes],
                "logical_length": [self.length] * len(sizes),
                "payload": [slot * self.held for slot, _ in sizes],
                "staging": [slot * rows for (slot, _), rows in zip(sizes, staged, strict=True)],
                "pad": [slot * (room - self.held - rows) for (slot, room), rows in zip(sizes, staged, strict=True)],
            }
        counted = {} if counted is None else counted
        kinds = ("payload", "staging", "pad")
        columns: dict[str, list] = {"live_slots": [], "logical_length": [], **{kind: [] for kind in kinds}}
        for layer, (k, v) in enumerate(zip(self._run.k, self._run.v, strict=True)):
            live, sizes = 0, [0, 0, 0]
            parts = [] if k is None else [(k, v, self.held, self._counts.get(layer, 0))]
            for piece in self.trunk:
                parts.append((piece[layer].k, piece[layer].v, piece[layer].k.shape[1], 0))
            for k, v, held, staged in parts:
                slot = _slot_bytes(k, v)
                known = counted.get(k.data_ptr())
                more = held if known is None else max(held - known, 0)
                free = (k.stride(0) // k.shape[2] if known is None else 0) - more - staged
                counted[k.data_ptr()] = max(held + staged, known or 0)
                live += more
                sizes = [size + slot * count for size, count in zip(sizes, (more, staged, free), strict=True)]
            columns["live_slots"].append(live)
            columns["logical_length"].append(self.length)
            for kind, size in zip(kinds, sizes, strict=True):
                columns[kind].append(size)
        return columns


def _slot_bytes(k: torch.Tensor, v: torch.Tensor) -> int:
    return (k.shape[0] * k.shape[2] + v.shape[0] * v.shape[2]) * k.itemsize
