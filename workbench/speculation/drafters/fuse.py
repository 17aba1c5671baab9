"""Two drafters at once: their trees become one."""

from dataclasses import dataclass, replace

import torch

from workbench.cache import Stack
from workbench.declare import register, setting
from workbench.engine.model import LanguageModel, Output
from workbench.errors import BadInput
from workbench.rounds import Round, State
from workbench.speculation.drafters.base import Drafter
from workbench.speculation.drafters.copyspec import CopySpec
from workbench.speculation.drafters.draft_model import DraftModel
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree import MAX_NODES, POINT, DraftTree

NAME = "fuse"


@register("drafter", NAME)
@dataclass(frozen=True)
class Fuse(Drafter):
    """The trees of two drafters as one, common beginnings told once (mode = union); or the second's where the first
    found nothing (mode = first): `Fuse(CopySpec(), DraftModel(), mode="first")`.

    `first` follows the decoder's shape, `second` its own default or `second_shape`. In a union the tree that holds
    draws from distributions stays as it is, and the other is grafted on as POINT nodes behind them: a draw must never
    give way to a copy of it. If distributions are known at the root, grafts begin with one of its `likeliest` tokens,
    the most probable first. Grafts add at most `share` of the shape's nodes. A node that both proposed names both. At
    temperature > 0, draws of a second drafter with distributions count as POINT. Source: "RASD: Retrieval-Augmented
    Speculative Decoding" (https://arxiv.org/abs/2503.03434; `likeliest` and `share` are reconstructed).
    """

    first: Drafter = setting(factory=CopySpec, family="drafter", help="follows the decoder's shape")
    second: Drafter = setting(factory=DraftModel, family="drafter", help="joins, or steps in")
    mode: str = setting("union", choices=("union", "first"), help="both drafters, or the second if the first is silent")
    second_shape: DraftShape | None = setting(None, family="shape", help="the second's shape (default: its own)")
    likeliest: int = setting(
        8, ge=1, le=4096, help="root tokens that grafts may begin with, where a distribution is known"
    )
    share: float = setting(1 / 3, gt=0, le=1, help="grafted nodes, as a share of the shape's")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.second_shape is None:
            object.__setattr__(self, "second_shape", self.second.default_shape())
        reason = self.second.refuses(self.second_shape)
        for part in (self.first, self.second):
            if type(part).score is not Drafter.score:
                reason = f"{part.declared_name!r} drafts with the target itself, and cannot be fused"
        if both := sorted(_keepers(self.first) & _keepers(self.second)):
            reason = f"two drafters {both[0]!r} would share one memory"
        if reason:
            raise BadInput(f"Fuse: {reason}")

    @property
    def parts(self) -> tuple[Drafter, Drafter]:
        return self.first, self.second

    gives = property(lambda self: self.first.gives)
    needs = property(lambda self: self.first.needs | self.second.needs)

    def default_shape(self) -> DraftShape:
        return self.first.default_shape()

    def refuses(self, shape: DraftShape) -> str | None:
        if "independent" in shape.gives:
            return f"shape {shape.declared_name!r} needs the draws of one drafter alone; {NAME!r} adds another's"
        if type(shape) is type(self.second_shape) and type(shape).observe is not DraftShape.observe:
            return f"two shapes {shape.declared_name!r} would learn in one memory"
        return self.first.refuses(shape)

    def check(self, lm: LanguageModel) -> None:
        for part in self.parts:
            part.check(lm)
        self.second_shape.check(self.second, lm)

    def runners(self, lm: LanguageModel) -> dict[str, LanguageModel]:
        ours, theirs = (part.runners(lm) for part in self.parts)
        if both := sorted(ours.keys() & theirs.keys()):
            raise BadInput(f"Fuse: both drafters would run a model as {', '.join(both)!r}; only one of them can")
        return ours | theirs

    def caches(self) -> dict[str, Stack | None]:
        return self.first.caches() | self.second.caches()

    def observe(self, state: State, r: Round, start: int, out: Output) -> None:
        for part in self.parts:
            if part.needs:
                part.observe(state, r, start, out)

    def propose(self, state: State, r: Round, shape: DraftShape, depth: int, seeded: bool) -> DraftTree:
        ours = self.first.propose(state, r, shape, depth, seeded)
        silent = self.mode == "first" and len(ours) > 1
        theirs = self.second.propose(state, r, self.second_shape, 0 if silent else depth, seeded)
        swap = len(ours) == 1 or (theirs.rows and not ours.rows)
        stem, other = (theirs, ours) if swap else (ours, theirs)
        budget = (self.second_shape if swap else shape).budget
        tree, places = graft(stem, other, max(1, int(self.share * budget)), self.likeliest)
        whole = list(range(len(stem)))
        pairs = (ours, places if swap else whole), (theirs, whole if swap else places)
        # pending proposals as a stack: nested Fuse drafters pushed theirs first
        state.memory[NAME] = (*state.memory.get(NAME, ()), pairs)
        return tree

    def on_verified(
        self, state: State, r: Round, tree: DraftTree, path: list[int], logits: torch.Tensor | None
    ) -> None:
        *below, proposed = state.memory[NAME]
        state.memory[NAME] = tuple(below)
        for part, (own, places) in zip(self.parts[::-1], proposed[::-1], strict=True):
            number = {place: node for node, place in enumerate(places) if place is not None}
            stood = [number[node] for node in path if node in number]
            if part is self.second:
                self.second_shape.observe(state.memory, own, len(stood))
            # a node that was not grafted stands for its nearest ancestor that was
            held: list[int] = []
            for node, place in enumerate(places):
                held.append(node if place is not None else held[own.parents[node]])
            rows = [places[node] for node in held]
            own = replace(own, tokens=[own.tokens[n] for n in held], parents=[own.parents[n] for n in held])
            own.hidden = None if tree.hidden is None else tree.hidden[rows]
            part.on_verified(state, r, own, stood, None if logits is None else logits[rows])


def graft(stem: DraftTree, other: DraftTree, most: int, likeliest: int) -> tuple[DraftTree, list[int | None]]:
    """The stem with at most `most` more nodes from another tree of the same root, and for every node of that tree its
    number in the result (None: not taken). New nodes are POINT; a node that both have names both drafters."""
    columns = ("tokens", "parents", "depths", "kinds", "ranks", "q", "drafters")
    tree = replace(stem, **{name: list(getattr(stem, name)) for name in columns})
    order, allowed = range(1, len(other)), None
    if 0 in stem.raw and len(other) > 1:
        order, allowed = _by_distribution(other, stem.raw[0], likeliest)
    most = min(len(stem) + most, MAX_NODES)
    known = {(stem.parents[node], stem.tokens[node]): node for node in range(len(stem) - 1, 0, -1)}
    places: list[int | None] = [0, *[None] * (len(other) - 1)]
    for node in order:
        parent, token = places[other.parents[node]], other.tokens[node]
        if parent is None:
            continue
        place = known.get((parent, token))
        if place is not None:
            tree.drafters[place] = _both(tree.drafters[place], other.drafters[node])
        elif len(tree) < most and (parent or allowed is None or token in allowed):
            place = known[parent, token] = tree.add(parent, token, POINT, None, other.drafters[node])
        places[node] = place
    if not all(parent in tree.raw for parent in tree.parents[1:]):
        tree.raw = {}  # distributions are compared at all nodes or at none
    return tree, places


def _by_distribution(other: DraftTree, dist: torch.Tensor, likeliest: int) -> tuple[list[int], set[int]]:
    """The nodes of a tree, branches with the likelier first token first, and the tokens that may begin one."""
    allowed = set(dist.topk(min(likeliest, len(dist))).indices.tolist())
    branch = [0] * len(other)
    for node, parent in enumerate(other.parents[1:], 1):
        branch[node] = branch[parent] if parent else other.tokens[node]
    logp = {token: float(dist[token]) for token in {*branch[1:]}}
    return sorted(range(1, len(other)), key=lambda node: (-logp[branch[node]], node)), allowed


def _both(first: str, second: str) -> str:
    return first if second in first.split("+") else f"{first}+{second}"


def _keepers(drafter: Drafter) -> set[str]:
    """Names of the drafters within that keep something in the decoding state's memory."""
    if isinstance(drafter, Fuse):
        return _keepers(drafter.first) | _keepers(drafter.second)
    return {drafter.declared_name} if type(drafter).on_verified is not Drafter.on_verified else set()
