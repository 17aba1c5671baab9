"""The contract of readers: which pages each row attends to. To write one, read this file.

Nothing is dropped: what a row does not read, the next one may. A page gets its notes once, when it is made; they are
what the reader goes by when rows come. It chooses for each row alone, and among pages only: the newest tokens, in the
run beside them, and the rows drafted before a row are always read. So a row sees in a draft what it would see alone.
Rows of the prompt read all pages. What policies drop or merge makes new pages, with notes of their own.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from workbench.declare import Declared
from workbench.errors import BadInput


class PageView(NamedTuple):
    """Decoded pages: k [n, slots, D] and v [n, slots, Dv], positions int64 and live bool [n, slots]."""

    k: torch.Tensor
    v: torch.Tensor
    positions: torch.Tensor
    live: torch.Tensor


@dataclass(frozen=True)
class Reading:
    """Rows of one forward in one layer, and the pages that lie there.

    queries: [H, R, D], as they are scored, H a multiple of the KV heads; notes: [Hk, P, …], of each page; newest: int32
    [Hk, P], the newest position in it, −1 for no page; there: bool [Hk, R, P], the pages that a row may read (none that
    a sliding window hides); page_size: in slots.
    """

    layer: int
    queries: torch.Tensor
    notes: torch.Tensor
    newest: torch.Tensor
    there: torch.Tensor
    page_size: int


class CacheReader(Declared):
    """Base of the readers. A reader gives `notes` and `select`, and holds no state."""

    family = "reader"
    needs: ClassVar[frozenset[str]] = frozenset({"queries"})
    reads: ClassVar[str] = "pages"  # what it chooses among, as the table `reads` says it

    def notes(self, pages: PageView) -> torch.Tensor:
        """A row for each page, [n, …]; of a page alone, whatever lies beside it."""
        raise NotImplementedError

    def select(self, reading: Reading) -> torch.Tensor:
        """The pages that each row reads, bool [Hk, R, P]; a row's choice follows from its own query."""
        raise NotImplementedError

    def noted(self, pages: PageView) -> torch.Tensor:
        """What `notes` answers. Raises BadInput where that is no row for each page."""
        found, count = self.notes(pages), len(pages.live)
        if not isinstance(found, torch.Tensor) or found.ndim < 1 or len(found) != count:
            raise BadInput(f"reader {self.declared_name}: notes() answered {_shape(found)}; expected a tensor of "
                           f"{count} rows, one for each page")  # fmt: skip
        return found

    def selected(self, reading: Reading) -> torch.Tensor:
        """What `select` answers, of pages that are there. Raises BadInput where it is of another shape."""
        found, there = self.select(reading), reading.there
        if not isinstance(found, torch.Tensor) or found.dtype != torch.bool or found.shape != there.shape:
            raise BadInput(f"reader {self.declared_name}: select() answered {_shape(found)}; expected bool "
                           f"{list(there.shape)}")  # fmt: skip
        return found & there


def _shape(found: object) -> str:
    return f"{found.dtype} {list(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
