"""What a managed store knows of one layer beside its run of newest tokens."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from workbench.cache.pages import PageTable


class Layer:
    """What a managed store knows of one layer beside its run: columns are the slots of pages, then those of the run.

    kept: int32 [Hk, m] positions of the first m slots of the run (tokens behind them follow on), None where nothing was
    evicted; mass: float64 [Hk, columns] or None; bias: float32 [Hk, columns at the last maintenance] or None;
    page_table: the pages or None; before: pages of tokens before that position lie on the host.
    """

    __slots__ = ("before", "bias", "kept", "mass", "page_table")

    def __init__(self, kept=None, mass=None, bias=None, page_table: PageTable | None = None, before: int = 0):
        self.kept, self.mass, self.bias, self.page_table, self.before = kept, mass, bias, page_table, before

    def fork(self) -> "Layer":
        return Layer(self.kept, self.mass, self.bias, self.page_table, self.before)

    def biases(self, columns: int) -> torch.Tensor | None:
        """What is added to the scores of all columns, [Hk, columns]; None for nothing."""
        return None if self.bias is None else F.pad(self.bias, (0, columns - self.bias.shape[1]))

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
        for kind, tensor in (("position", self.kept), ("score", self.mass), ("bias", self.bias)):
            new = tensor is not None and (counted is None or tensor.data_ptr() not in counted)
            kinds[kind] = kinds.get(kind, 0) + (tensor.nbytes if new else 0)
            if new and counted is not None:
                counted[tensor.data_ptr()] = 1
        return kinds
