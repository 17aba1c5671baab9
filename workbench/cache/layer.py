"""What a managed store knows of one layer beside its run of newest tokens."""

from collections.abc import Mapping, Sequence
from copy import copy

import torch
import torch.nn.functional as F

from workbench.cache.pages import PageTable


class Layer:
    """What a managed store knows of one layer beside its run: columns are the slots of pages, then those of the run.

    kept: int32 [Hk, m] positions of the first m slots of the run (tokens behind them follow on), None where nothing was
    evicted; mass: float64 [Hk, columns] or None; bias, unread, cold: float32, bool, bool [Hk, columns at the last
    maintenance] or None, as of a `Plan`; queries: [Hk, m, D] of the newest tokens or None; memory: of the method;
    page_table: the pages or None; before: pages of tokens before that position lie on the host.
    """

    __slots__ = ("before", "bias", "cold", "kept", "mass", "memory", "page_table", "queries", "unread")

    def __init__(self) -> None:
        self.kept = self.mass = self.bias = self.unread = self.cold = self.queries = None
        self.memory: Mapping[str, torch.Tensor] | None = None
        self.page_table: PageTable | None = None
        self.before = 0

    def fork(self) -> "Layer":
        return copy(self)

    def wide(self, name: str, columns: int) -> torch.Tensor | None:
        """`bias`, `unread` or `cold` of all columns, [Hk, columns]: 0 for those that came since; None for none."""
        facts = getattr(self, name)
        return None if facts is None else F.pad(facts, (0, columns - facts.shape[1]))

    def cold_pages(self) -> set[tuple[int, int]]:
        """KV head and number of each page whose slots are all cold."""
        if self.cold is None or self.page_table is None:
            return set()
        counts = self.cold[:, : self.slots].unflatten(1, (-1, self.page_table.page_size)).sum(-1).tolist()
        return {(head, number) for head, row in enumerate(self.page_table.pages) for number, page in enumerate(row)
                if page.live and counts[head][number] == page.live}  # fmt: skip

    @property
    def slots(self) -> int:
        """Columns that lie in pages."""
        return self.page_table.slots if self.page_table else 0

    def positions(self, held: int, length: int, device: torch.device) -> torch.Tensor:
        """Of the run's slots: [Hk, held], or [1, held] where heads are alike."""
        if self.kept is None:
            return torch.arange(length - held, length, device=device)[None]
        tail = torch.arange(length - held + self.kept.shape[1], length, device=device)
        return torch.cat([self.kept, tail.expand(len(self.kept), -1)], 1)

    def folded(
        self, seen: Sequence[tuple[list[int], torch.Tensor]], rows: list[int], held: int, k: torch.Tensor
    ) -> torch.Tensor:
        """The mass with the attention of the committed rows added, and a column for each of them behind.

        seen: row numbers and mass [rows, Hk, n] of every forward of the round.
        """
        base = held + self.slots
        width = max([base + max(rows) + 1, *(mass.shape[2] for _, mass in seen)])
        added = torch.zeros(len(k), width, dtype=torch.float64, device=k.device)
        for numbers, mass in seen:
            inside = [i for i, number in enumerate(numbers) if number in rows]
            added[:, : mass.shape[2]] += mass[inside].double().sum(0)
        old = added[:, :base] if self.mass is None else added[:, :base] + self.mass
        return torch.cat([old, added[:, [base + row for row in rows]]], 1)

    def ledger(self, counted: dict[int, int] | None = None) -> dict[str, int]:
        """Bytes by kind, of what is not in `counted`: addresses of tensors, and ids of tables, pages and arenas."""
        kinds = self.page_table.ledger(counted) if self.page_table else {}
        held = [("position", self.kept), ("score", self.mass), ("bias", self.bias), ("score", self.queries)]
        held += [("note", self.unread), ("note", self.cold)]
        held += [("score", kept) for kept in (self.memory or {}).values()]
        for kind, tensor in held:
            new = tensor is not None and (counted is None or tensor.data_ptr() not in counted)
            kinds[kind] = kinds.get(kind, 0) + (tensor.nbytes if new else 0)
            if new and counted is not None:
                counted[tensor.data_ptr()] = 1
        return kinds
