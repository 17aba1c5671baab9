"""A store whose memory stays where it is, so that a round on the device can write to it: see `DeviceRound`.

It is the plain store with three differences: the run of all layers is one tensor, its capacity grows by doubling, and a
round on the device may have put rows in place before the host hears of them. The host's `length` is right again after
that round's one copy. A fork that writes where another has written copies the run; nothing is made a trunk.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from workbench.cache.store import PlainStore, _Run
from workbench_kernels import segment_attention

_SMALLEST = 256  # slots


class StaticRun(_Run):
    """Keys [layers, Hk, capacity, D] and values [layers, Hk, capacity, Dv] at one address; the layers are views."""

    @classmethod
    def of(cls, k: list, v: list, length: int, capacity: int) -> "StaticRun":
        """As of the plain run, with room for `capacity` slots or more."""
        new = cls(len(k))
        new.capacity, new.frontier = max(_SMALLEST, 1 << (capacity - 1).bit_length()), length
        for name, old in (("k", k), ("v", v)):
            heads, _, size = old[0].shape
            # zeros: a mask hides what is not live, but 0 times NaN is NaN
            whole = old[0].new_zeros(len(old), heads, new.capacity, size)
            for layer, tensor in enumerate(old):
                whole[layer, :, :length] = tensor[:, :length]
            setattr(new, name, list(whole))
            setattr(new, f"all_{name}", whole)
        return new

    def move(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy slots `sources` to `targets`, both int64 on the device, in every layer; all are read before a write."""
        for whole in (self.all_k, self.all_v):
            whole.index_copy_(2, targets, whole.index_select(2, sources))


class StaticStore(PlainStore):
    """Every committed token in the model's own dtype, at one address as long as the capacity lasts."""

    def __init__(self, layers: int):
        super().__init__(layers)
        self._landed: list[int] | None = None

    @classmethod
    def of(cls, store: PlainStore, capacity: int = 0) -> "StaticStore":
        """The committed tokens of a plain store, copied, with room for `capacity` in all. See `refuses`."""
        new = cls(0)
        new._run = StaticRun.of(store._run.k, store._run.v, store.length, max(capacity, store.length))
        new.length = new.held = store.length
        return new

    @staticmethod
    def refuses(store: Any) -> str | None:
        """Why a store's tokens cannot be kept at one address, or None."""
        if type(store) not in (PlainStore, StaticStore):
            return f"a {type(store).__name__} is maintained by the host"
        if not store.length:
            return "nothing is cached yet"
        if store.trunk:
            return "other sequences share its first tokens"
        if any(len({tensor.shape for tensor in tensors}) > 1 for tensors in (store._run.k, store._run.v)):
            return "the layers' keys and values are of different shapes"
        return None

    def open(self, slots: int) -> StaticRun:
        """Claim room for a round on the device that writes below slot `slots`; returns the run it writes to."""
        self.begin(range(self.length, slots))
        return self._run

    def commit_written(self, length: int, staged: int, rows: Sequence[int]) -> None:
        """What the round on the device has done: `length` tokens are committed, `staged` rows are in flight behind
        them, of which `rows` lie at the front in this order, ready to be committed."""
        self.end()
        self.length = self.held = self._run.frontier = length
        self.staged, self._landed = staged, list(rows)

    def commit(self, rows: Sequence[int]) -> None:
        """As the plain store; after `commit_written`, rows must be the first of those that were put in place."""
        if self._landed is None:
            return super().commit(rows)
        if list(rows) != self._landed[: len(rows)]:
            raise RuntimeError(f"commit: the device put rows {self._landed} in place, and {list(rows)} are to be kept")
        self.length += len(rows)
        self.held = self._run.frontier = self.length
        self.discard()

    def discard(self) -> None:
        self._landed = None
        super().discard()

    def share(self) -> None:
        """Nothing: the run stays where it is."""

    def _empty(self) -> "StaticStore":
        return StaticStore(0)


class LiveRows:
    """The rows of one forward inside a round on the device: where they go in a run, and what they see of it.

    run: where keys and values lie; it is not kept alive. visible: bool [R, S], what each row sees of the S slots behind
    the committed ones, of which the rows are those from `first` on. `at(base)` says, on the device, how many slots are
    committed.
    """

    def __init__(self, run: StaticRun, visible: torch.Tensor, first: int, implementation: str = "auto"):
        device = run.k[0].device
        rows, self.staged = visible.shape
        self.run, self.implementation = weakref.proxy(run), implementation
        self.visible = visible.to(device)
        self.words = segment_attention.mask_words(visible).to(device)
        self.offsets = torch.arange(first, first + rows, device=device)
        self.slots_ = torch.arange(run.capacity, device=device)

    def at(self, base: torch.Tensor) -> "LiveRows":
        """base: int64 [1] on the device. Must be called before a forward."""
        self.base, self.base32, self.slots = base, base.to(torch.int32), base + self.offsets
        self.mask: torch.Tensor | None = None
        return self

    def stage(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """k [Hk, R, D] and v [Hk, R, Dv] of one layer, to their slots."""
        self.run.k[layer].index_copy_(1, self.slots, k)
        self.run.v[layer].index_copy_(1, self.slots, v)

    def attend(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """q [1, H, R, D] -> [1, R, H, Dv]. Triton reads the live slots; SDPA all of them, under a mask."""
        k, v = self.run.k[layer], self.run.v[layer]
        if self.choice(q).name == "triton":
            out, _ = segment_attention.attend_live(
                q[0].transpose(0, 1), k, v, self.base32, self.words, self.staged, scale
            )
            return out.to(q.dtype)[None]
        if self.mask is None:
            behind = self.slots_ - self.base
            flying = (behind >= 0) & (behind < self.staged)
            self.mask = (behind < 0) | (flying & self.visible[:, behind.clamp(0, self.staged - 1)])
        out = F.scaled_dot_product_attention(q, k[None], v[None], attn_mask=self.mask, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)

    def choice(self, q: torch.Tensor) -> segment_attention.Choice:
        """Which implementation attends, and why."""
        return segment_attention.choose(q, self.run.v[0], implementation=self.implementation)
