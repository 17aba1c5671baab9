"""What a cache is to those who read it: segments of keys and values, and the store that gives them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

MANY = 2**62  # rows: no limit


@dataclass(frozen=True)
class Dress:
    """How a segment is read, where it is not read as it is.

    turn: int64 [R], of each row how many tokens further on the keys are read than they lie, by `rotation`; None for 0.
    temperature: scores are divided by it. scale: of the segment's log-sum-exp, before it is weighed against others'.
    """

    temperature: float = 1.0
    scale: float = 1.0
    turn: torch.Tensor | None = None
    rotation: Any = None


@dataclass(slots=True)
class Segment:
    """A set of keys that the rows of one forward attend to.

    k: [Hk, n, D]; v: [Hk, n, Dv]; mask: [R, n] or, where KV heads differ, [Hk, R, n] bool (True = visible), or None
    where every row sees all of it; causal: the rows of this forward are its last keys and see each other in order;
    bias: float32 [Hk, n] added to the scores of each key, or None; positions: int64 [n] of a piece of the trunk whose
    tokens do not follow on each other, or None; dress: how it is read.
    """

    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None = None
    causal: bool = False
    bias: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    dress: Dress | None = None
    page_table = None  # keys and values lie here as they are, not in coded pages

    @property
    def plain(self) -> bool:
        """Whether every row sees all of it, as it is."""
        return self.mask is None and not self.causal and self.bias is None and self.dress is None

    def dense(self, dtype: torch.dtype) -> "Segment":
        """With keys and values as numbers: of pages, decoded."""
        return self


class CacheStore(Protocol):
    """What a decoder and the engine may ask of any store. One store holds one sequence for one model.

    The members with a body are the answers of a store that nobody maintains.
    """

    length: int  # committed tokens
    staged: int  # rows in flight, in all layers or in some
    behind: int  # of them, those that the layers of the open forward had staged before it
    watched: Sequence[int] = ()  # rows of the open forward whose attention mass is wanted
    trunk: Sequence[Sequence["Segment"]] = ()  # pieces before the run that forks share: a segment for every layer
    implementation: str = "sdpa"  # what computed the attention last
    maintained_ms: float = 0.0  # what maintenance took so far

    def begin(
        self,
        positions: Sequence[int],
        visible: torch.Tensor | None = None,
        layers: Sequence[int] | None = None,
        tokens: Sequence[int] | torch.Tensor | None = None,
    ) -> None: ...
    def stage(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None: ...
    def segments(self, layer: int, window: int | None = None, query: torch.Tensor | None = None) -> list[Segment]: ...
    def end(self) -> None: ...
    def commit(self, rows: Sequence[int]) -> None: ...
    def discard(self) -> None: ...
    def fork(self) -> "CacheStore": ...
    def ledger(self, counted: dict[int, int] | None = None) -> dict[str, list]: ...

    def share(self) -> None:
        """Forks that follow will go on side by side: what is committed need not be copied for them."""

    def add_mass(self, layer: int, mass: torch.Tensor) -> None:
        """Note what the `watched` rows of this forward looked at: [rows, Hk, slots as in `segments`]."""

    def rows_left(self, length: int) -> int:
        """How many rows from a committed length on may go into one forward: up to the next maintenance."""
        return MANY

    def read_stats(self) -> tuple[int, int, int]:
        """What the last forward read behind the trunk: raw slots, slots of pages (both per KV head, the most of any
        layer), bytes of pages."""
        return self.length, 0, 0

    @property
    def acts(self) -> dict[str, list[int]]:
        """Slots per KV head and layer that maintenance dropped, merged and fetched since the last `drain`."""
        return {}

    def drain(self) -> tuple[list[dict[str, Any]], dict[str, list], dict[str, list]]:
        """Since the last call: events and rows of the bits table of what maintenance did, rows of the reads table."""
        return [], {}, {}
