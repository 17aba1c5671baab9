"""What a maintenance knows of one layer: where its slots are, what they hold, and what has become of them so far."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from workbench.cache.events import runs_of
from workbench.cache.plan import LayerView
from workbench.cache.readers.base import PageView


class LayerWork:
    """One layer under maintenance. Columns: the slots of its pages, then those of its run."""

    def __init__(self, store: Any, layer: int, ahead: tuple | None):
        """store: a `ManagedStore`; ahead: pages of the first slots of the run as packed already, and unpacked."""
        self.layer, self.layers, self.length, self.prompt = layer, len(store._layers), store.length, store.prompt
        self.ahead, self.state = ahead, store._layers[layer].fork()
        self.k, self.v = (x[layer][:, : store.held] for x in (store._run.k, store._run.v))
        self.heads, self.held = self.k.shape[:2]
        self.old, self.slots = self.state.page_table, self.state.slots
        self.page_size = store.stack.storage.page_size if store.stack.storage else 0
        self.reader, self.marked = store.stack.reader, store.marked
        self.codecs = store.codecs(layer, self.k, self.v) if store.stack.storage else []
        self.events: list[dict[str, Any]] = []
        self.bits: dict[str, list] = {}  # columns of the bits table
        self.changed = False  # the run is another one
        self.where = self.live = None  # positions and what lives, [Hk, columns]; read once a plan needs them
        self.gone: torch.Tensor | None = None  # columns evicted now, None for none
        self.loose: torch.Tensor | None = None  # columns of pages that merging changed
        self.moved = False  # other slots are cold than were
        self.merged = 0  # slots added to others, per KV head
        self.mixed: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None  # column of a head, merged k and v

    def look(self) -> None:
        """Find out where the slots are."""
        if self.where is not None:
            return
        self.where = self.state.positions(self.held, self.length, self.k.device).expand(self.heads, -1).long()
        self.live = torch.ones_like(self.where, dtype=torch.bool)
        if self.old is not None:
            where, live = self.old.places()
            self.where, self.live = torch.cat([where, self.where], 1), torch.cat([live, self.live], 1)

    def view(self) -> LayerView:
        """The live slots in order of their positions, for a method to look at."""
        self.look()
        n = int(self.live.sum(-1).max())
        order = self.where.masked_fill(~self.live, -1).argsort(dim=-1, stable=True)[:, self.live.shape[1] - n :]
        live = self.live.gather(1, order)
        stats = {}
        if self.state.mass is not None:
            stats["mass"] = self.state.mass.gather(1, order).masked_fill(~live, 0)
        if self.marked is not None:
            marks = self.marked[self.where.gather(1, order).clamp_min(0)].double()
            stats["marks"] = marks.masked_fill(~live, 0)
        self.order = order
        bias = self.state.wide("bias", self.slots + self.held)
        bias = torch.zeros(live.shape, device=live.device) if bias is None else bias.gather(1, order)
        positions = self.where.gather(1, order).masked_fill(~live, -1)
        head = torch.arange(self.heads, device=order.device)[:, None]

        def read(slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.read(head.expand_as(slots), order.gather(1, slots))

        facts = (self.layer, self.layers, self.length, self.prompt, positions, live, stats, bias, read)
        return LayerView(*facts, self.state.queries, self.state.memory)

    def read(self, head: torch.Tensor, column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [..., D] and values [..., Dv] of columns, in float32 (float64 for float64), what is merged as merged."""
        wide = torch.promote_types(self.k.dtype, torch.float32)
        at = (column - self.slots).clamp_min(0)
        k, v = (x[head, at].to(wide) if self.held else x.new_empty(*at.shape, x.shape[2], dtype=wide)
                for x in (self.k, self.v))  # fmt: skip
        if self.old is not None and (coded := column < self.slots).any():
            k[coded], v[coded] = (x.to(wide) for x in self.old.read(head[coded], column[coded]))
        if self.mixed is not None:
            names, new_k, new_v = self.mixed
            name = head * (self.slots + self.held) + column
            at = torch.searchsorted(names, name).clamp_max(len(names) - 1)
            new = names[at] == name
            k[new], v[new] = new_k[at[new]], new_v[at[new]]
        return k, v

    def notes(self, pages: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """A reader's notes on pages as `Codec.unpack` gives them; None without a reader."""
        return None if self.reader is None else self.reader.noted(PageView(*pages))

    def places(self, head: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Positions of columns [G, slots] of heads [G]; those of a plain run follow from the length."""
        if self.where is None and self.state.kept is None:
            return columns - self.slots + self.length - self.held
        self.look()
        return self.where[head[:, None], columns]

    def reorder(self, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Do the same to all that is known of slots by column."""
        if self.state.mass is not None:
            self.state.mass = act(self.state.mass)
        for name in ("bias", "unread", "cold"):
            if getattr(self.state, name) is not None:
                setattr(self.state, name, act(self.state.wide(name, self.slots + self.held)))

    def event(self, op: str, head: int, places: torch.Tensor, **facts: Any) -> None:
        self.events.append({"layer": self.layer, "head": head, "op": op, "positions": runs_of(places), **facts})
