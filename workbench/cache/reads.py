"""What attention read of the pages of a layer, counted page by page."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from workbench.cache.pages import Page, PageTable


@dataclass(slots=True)
class Read:
    """Of one forward, or of several added up. unit: what was chosen among, None where nothing was; held, read: how many
    of these, in all KV heads; slots: read per KV head, the most of any; bytes: of the pages that were read; fetched,
    fetched_slots: of them from another tier."""

    unit: str | None = None
    held: int = 0
    read: int = 0
    slots: int = 0
    bytes: int = 0
    fetched: int = 0
    fetched_slots: int = 0

    @classmethod
    def whole(cls, table: PageTable) -> "Read":
        """All pages, unasked."""
        fetched = {"fetched": table.offloaded, "fetched_slots": table.offloaded_slots}
        if any(arena.tier == "same memory" for arena in table.arenas):
            fetched = {}
        return cls(slots=max(table.live), bytes=table.bytes, **fetched)

    @classmethod
    def chosen(cls, table: PageTable, pages: Sequence[Sequence[Page]], unread: int | None = None) -> "Read":
        """The pages chosen in each KV head; unread: slots left out, where slots were chosen."""
        flat, held = [page for row in pages for page in row], sum(map(len, table.pages))
        away = [page.codec.bytes for page in flat if page.arena.tier == "host"]
        slots, size = max(sum([page.live for page in row]) for row in pages), sum([page.codec.bytes for page in flat])
        unit, held, read = "pages", held, len(flat)
        if unread is not None:
            unit, held, read = "slots", sum(table.live), sum(table.live) - unread
        return cls(unit, held, read, slots, size, sum(away), len(away) * table.page_size)

    def __add__(self, other: "Read") -> "Read":
        sums = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)[1:]}
        return Read(self.unit or other.unit, **sums)
