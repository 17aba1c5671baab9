"""The contract of cache methods: a method looks at a layer and answers with a plan. To write one, read this file.

A method acts at boundaries, which are committed lengths. There the store shows it a `LayerView` of every layer and
does what its `Plan` says, once the plan has been checked. Methods hold no state: what they ask for in `needs` is
collected for them from committed rows only, so that how tokens were drafted leaves no trace.

A method that leaves slots `unread` decides at boundaries what all rows read until the next; one that decides for each
row is a reader (`cache/readers/base.py`). One word is kept for methods that will need it: `probe` (rows read at a
boundary for their facts, then dropped).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from workbench.declare import Declared
from workbench.errors import BadInput, shown

WEIGHT, BIAS = 1e6, 100.0  # the largest of a merge, and of a score's bias in nats


@dataclass(frozen=True)
class LayerView:
    """One layer at a boundary, to read. Columns are slots in order of their positions, the newest token last.

    A head that holds fewer slots than another begins with columns that are not `live`.

    layer, layers: which, of how many; length, prompt: committed tokens, tokens of the prompt; positions: int64 [Hk, n],
    −1 where not live; live: bool [Hk, n]; stats: what `needs` asked for, float64 [Hk, n], 0 where not live; bias:
    float32 [Hk, n], what is added to a slot's scores; queries: [Hk, m, D], where asked for, those of the newest tokens;
    memory: what the method's last plan for this layer gave to keep.
    """

    layer: int
    layers: int
    length: int
    prompt: int
    positions: torch.Tensor
    live: torch.Tensor
    stats: Mapping[str, torch.Tensor]
    bias: torch.Tensor
    read: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    queries: torch.Tensor | None = None
    memory: Mapping[str, torch.Tensor] | None = None

    def keys(self, slots: torch.Tensor | None = None) -> torch.Tensor:
        """Keys of columns int64 [Hk, m], or of all, as they are read: [Hk, m, D] in float32 (float64 for float64)."""
        return self._at(slots)[0]

    def values(self, slots: torch.Tensor | None = None) -> torch.Tensor:
        """Values, as `keys`: [Hk, m, Dv]."""
        return self._at(slots)[1]

    def _at(self, slots: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if slots is None:
            slots = torch.arange(self.positions.shape[1], device=self.positions.device).expand_as(self.positions)
        return self.read(slots)


class Merge(NamedTuple):
    """Slots added to others: target = own · target + Σ weight · source, in float32, before anything is quantized.

    source, target: int64 [Hk, m], columns of the view, or −1 in both for no pair; weight_k, weight_v: [Hk, m]. `own` is
    1, or the weight of a pair of a slot with itself. A target keeps its position and takes the larger of the stats.
    """

    source: torch.Tensor
    target: torch.Tensor
    weight_k: torch.Tensor
    weight_v: torch.Tensor


@dataclass(frozen=True)
class Plan:
    """What becomes of the slots of a view. keep: bool [Hk, n], which stay; None for all. merge: see `Merge`.

    bias: float32 [Hk, n], what is added to the scores of each slot from now on, such as log m for one that stands for m
    tokens; None leaves it as it is. unread: bool [Hk, n], slots that are held, and read by no row, until another plan
    says otherwise. cold: bool [Hk, n]; pages with no other slots lie in the tier below the device, which changes no
    number. Both speak of slots in pages: what is in the run beside them is read, and stays. memory: tensors by name, of
    the method's own, for the next view; they are replaced, never changed.
    """

    keep: torch.Tensor | None = None
    merge: Merge | None = None
    bias: torch.Tensor | None = None
    unread: torch.Tensor | None = None
    cold: torch.Tensor | None = None
    memory: Mapping[str, torch.Tensor] | None = None


class CacheMethod(Declared):
    """Base of the methods that choose which slots stay. A method gives `importance`, or a `plan` of its own.

    needs: "mass" (the attention that each slot received from the rows of `watches`), "slot_positions" (keys are read at
    their place in the cache), "queries" (`view.queries`: of the `newest` tokens, the mean over the heads of a group),
    "marks" (stats["marks"]: 1 where the token is one of `marks`). ragged: heads or layers may keep different numbers of
    slots, or leave some unread or cold; they then lie in pages. reads: "slots" where plans leave some unread.
    """

    family = "policy"
    needs: ClassVar[frozenset[str]] = frozenset()
    ragged: ClassVar[bool] = False
    reads: ClassVar[str | None] = None

    def marks(self, lm: Any) -> bytes:
        """Of every token of a model 1 where it is marked, else 0, for methods that need "marks". Raises Unsupported."""
        raise NotImplementedError

    def next(self, length: int, prompt: int) -> int | None:
        """The first committed length above `length` at which the method acts; None if never again."""
        return length - length % self.interval + self.interval

    def watches(self, position: int, prompt: int) -> bool:
        """Whether the attention of the row at a position counts; `prompt`: tokens of the prompt."""
        return "mass" in self.needs

    @property
    def newest(self) -> int:
        """How many of the newest tokens are never dropped; the newest one never is."""
        return 1

    def importance(self, view: LayerView) -> torch.Tensor:
        """How much each slot matters, float64 [Hk, n]; higher stays, of equals the earlier one."""
        raise NotImplementedError

    def budgets(self, views: Sequence[LayerView]) -> Sequence[int | torch.Tensor]:
        """Slots that each layer may keep per KV head: a number, or int64 [Hk]."""
        return [self.budget] * len(views)

    def plan(self, view: LayerView, budget: int | torch.Tensor) -> Plan | None:
        """What becomes of the slots of a layer; None to leave it as it is."""
        return keep_top(view, self.importance, budget, self.newest)

    def plans(self, views: Sequence[LayerView]) -> list[Plan | None]:
        """What becomes of all layers. Raises BadInput, with nothing done, where an answer cannot be carried out."""
        budgets = list(self.budgets(views))
        if wrong := _wrong_budgets(budgets, views):
            raise BadInput(f"policy {self.declared_name}: budgets() answered {wrong}")
        plans = [self.checked(view, budget) for view, budget in zip(views, budgets, strict=True)]
        held = {_held(view, plan) for view, plan in zip(views, plans, strict=True)}
        if not self.ragged and len(held) > 1:
            raise BadInput(f"policy {self.declared_name}: plan() left {min(held)} to {max(held)} slots in the layers; "
                           "expected as many in each, or a method that declares ragged = True")  # fmt: skip
        return plans

    def checked(self, view: LayerView, budget: int | torch.Tensor) -> Plan | None:
        """What `plan` answers. Raises BadInput where that cannot be done."""
        plan = self.plan(view, budget)
        if plan is not None and (wrong := _wrong(plan, view, min(self.newest, view.positions.shape[1]), self.ragged)):
            raise BadInput(f"policy {self.declared_name}: plan() answered {wrong}")
        return plan


class Wrapper(CacheMethod):
    """Base of methods that hold another, `method`, and change what it would do; all else is as that one has it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method.reads:
            raise BadInput(f"{type(self).__name__}(method=…): expected a policy that drops slots; "
                           f"{self.method.declared_name} keeps all and reads some")  # fmt: skip
        if "slot_positions" in self.method.needs:
            raise BadInput(f"{self.declared_name} holds keys in pages or mixes them, and {self.method.declared_name} "
                           "turns them as they are read: use positions='baked'")  # fmt: skip

    @property
    def needs(self) -> frozenset[str]:
        return self.method.needs

    @property
    def ragged(self) -> bool:
        return self.method.ragged

    @property
    def newest(self) -> int:
        return self.method.newest

    def next(self, length: int, prompt: int) -> int | None:
        return self.method.next(length, prompt)

    def watches(self, position: int, prompt: int) -> bool:
        return self.method.watches(position, prompt)

    def importance(self, view: LayerView) -> torch.Tensor:
        return self.method.importance(view)

    def budgets(self, views: Sequence[LayerView]) -> Sequence[int | torch.Tensor]:
        return self.method.budgets(views)

    def plan(self, view: LayerView, budget: int | torch.Tensor) -> Plan | None:
        return self.method.plan(view, budget)


def keep_top(
    view: LayerView, importance: Callable[[LayerView], torch.Tensor], budget: int | torch.Tensor, newest: int
) -> Plan | None:
    """Keep the `newest` slots of every head, and of the others the most important, `budget` together; None for all."""
    heads, n = view.positions.shape
    budget = torch.as_tensor(budget, device=view.positions.device).expand(heads)
    if (view.live.sum(-1) <= budget).all():
        return None
    older = max(n - newest, 0)
    order = (
        importance(view)[:, :older]
        .masked_fill(~view.live[:, :older], -torch.inf)
        .sort(dim=-1, descending=True, stable=True)
        .indices
    )
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(older, device=order.device).expand_as(order))
    keep = view.live.clone()
    keep[:, :older] &= rank < (budget - newest)[:, None]
    return Plan(keep)


def _held(view: LayerView, plan: Plan | None) -> int:
    return int((view.live if plan is None or plan.keep is None else plan.keep)[0].sum())


def _wrong_budgets(budgets: list, views: Sequence[LayerView]) -> str | None:
    """What is wrong with budgets, and what was expected; None for nothing."""
    heads = len(views[0].live)
    if len(budgets) != len(views):
        return f"{len(budgets)} of them; expected one for each of {len(views)} layers"
    for budget in budgets:
        fits = isinstance(budget, torch.Tensor) and budget.dtype == torch.int64 and budget.shape in ((), (heads,))
        if not (fits or type(budget) is int) or (torch.as_tensor(budget) < 0).any():
            return f"{shown(budget)}; expected a number of slots, or int64 [{heads}], of at least 0"
    return None


def _wrong(plan: Any, view: LayerView, newest: int, ragged: bool) -> str | None:
    """What is wrong with a plan, and what was expected; None for nothing."""
    if not isinstance(plan, Plan):
        return f"a {type(plan).__name__}; expected a Plan, or None to keep all"
    live, keep = view.live, plan.keep
    if keep is not None:
        expected = f"; expected keep, bool {list(live.shape)} on {live.device}, with the newest {newest} slots"
        if not isinstance(keep, torch.Tensor) or keep.dtype != torch.bool:
            return f"keep of {getattr(keep, 'dtype', type(keep).__name__)}{expected}"
        if keep.shape != live.shape or keep.device != live.device:
            return f"keep of shape {list(keep.shape)} on {keep.device}{expected}"
        if (keep & ~live).any():
            return f"keep with slots that hold nothing{expected}"
        if not keep[:, live.shape[1] - newest :].all():
            return f"keep without the newest{expected}"
        counts = keep.sum(-1)
        if not ragged and (counts != counts[0]).any():
            return f"{int(counts.min())} to {int(counts.max())} slots in the heads of a layer; expected as many in " \
                   "each, or a method that declares ragged = True"  # fmt: skip
    if (bias := plan.bias) is not None:
        expected = f"; expected float32 {list(live.shape)} on {live.device}, finite and at most {BIAS:g}"
        if not isinstance(bias, torch.Tensor) or bias.dtype != torch.float32 or bias.shape != live.shape:
            return f"bias of {getattr(bias, 'dtype', type(bias).__name__)} {list(getattr(bias, 'shape', ()))}{expected}"
        if bias.device != live.device or not (bias[live].abs() <= BIAS).all():
            return f"bias on {bias.device} of up to {bias.abs().max():g}{expected}"
    for name in ("unread", "cold"):
        if (slots := getattr(plan, name)) is not None and (wrong := _wrong_slots(slots, live, keep, newest, ragged)):
            return f"{name} {wrong}"
    if plan.memory is not None and not all(isinstance(kept, torch.Tensor) for kept in plan.memory.values()):
        return "memory with something else than tensors; expected tensors by name"
    return None if plan.merge is None else _wrong_merge(plan.merge, live, live if keep is None else keep)


def _wrong_slots(slots: Any, live: torch.Tensor, keep: torch.Tensor | None, newest: int, ragged: bool) -> str | None:
    """What is wrong with what is unread or cold."""
    expected = f"; expected bool {list(live.shape)} on {live.device}, of slots that stay, without the newest {newest}"
    if not isinstance(slots, torch.Tensor) or slots.dtype != torch.bool or slots.shape != live.shape:
        shape = list(getattr(slots, "shape", ()))
        return f"of {getattr(slots, 'dtype', type(slots).__name__)} {shape}{expected}"
    if slots.device != live.device or (slots & ~(live if keep is None else keep)).any():
        return f"of slots that do not stay{expected}"
    if slots[:, live.shape[1] - newest :].any():
        return f"of the newest slots{expected}"
    return None if ragged else "of slots that lie in no pages; expected a method that declares ragged = True"


def _wrong_merge(merge: Any, live: torch.Tensor, keep: torch.Tensor) -> str | None:
    expected = f"; expected a Merge of source and target int64 [{len(live)}, m] and real weights [{len(live)}, m]"
    if not isinstance(merge, Merge) or not all(isinstance(x, torch.Tensor) for x in merge):
        parts = ", ".join(type(x).__name__ for x in merge) if isinstance(merge, tuple) else "no parts"
        return f"a merge of type {type(merge).__name__}, of {parts}{expected}"
    shape = list(merge.source.shape)
    if merge.source.ndim != 2 or len(merge.source) != len(live) or any(list(x.shape) != shape for x in merge):
        return f"a merge of shapes {', '.join(str(list(x.shape)) for x in merge)}{expected}"
    real = merge.weight_k.is_floating_point() and merge.weight_v.is_floating_point()
    if {merge.source.dtype, merge.target.dtype} != {torch.int64} or not real:
        return f"a merge of {', '.join(str(x.dtype) for x in merge)}{expected}"
    if any(x.device != live.device for x in merge):
        return f"a merge on {merge.source.device}{expected} on {live.device}"
    valid = merge.source >= 0
    if (valid != (merge.target >= 0)).any() or any((x >= live.shape[1]).any() for x in merge[:2]):
        return f"a merge of columns outside the view{expected}"
    if not all((weight[valid].abs() <= WEIGHT).all() for weight in merge[2:]):
        return f"a merge with a weight that is not finite or above {WEIGHT:g}; expected smaller ones"
    source, target = merge.source.clamp_min(0), merge.target.clamp_min(0)
    if not live.gather(1, source)[valid].all():
        return "a merge of a slot that holds nothing; expected live sources"
    if not keep.gather(1, target)[valid].all():
        return "a merge into a slot that does not stay; expected targets in keep"
    itself = (valid & (source == target)).long()
    if (torch.zeros_like(live, dtype=torch.long).scatter_add(1, target, itself) > 1).any():
        return "a merge with two pairs of a slot with itself; expected one weight of its own"
    return None
