"""The target's own first layers draft, and verification goes on from where they stopped."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from workbench.declare import register, setting
from workbench.engine.distribution import Distribution
from workbench.engine.model import LanguageModel, Output, kept
from workbench.errors import BadInput
from workbench.rounds import Round, State
from workbench.speculation.drafters.base import RowDrafter
from workbench.speculation.heads import weights
from workbench.speculation.heads.model import HeadModel
from workbench.speculation.heads.modules import Attend, Attention
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.confidence import ConfidenceStop
from workbench.speculation.tree import DraftTree
from workbench.speculation.tree_builder import TreeBuilder


class Adapter(nn.Module):
    """One exit: states [B, R, width] behind the first layers -> what the target's head reads, [B, R, width].

    RMSNorm, attention with keys and values of its own, a residual of the normed states, RMSNorm (no MLP).
    """

    def __init__(self, width: int, heads: int, kv_heads: int):
        super().__init__()
        self.before = nn.RMSNorm(width, eps=1e-6)
        self.attention = Attention(width, heads, kv_heads)
        self.after = nn.RMSNorm(width, eps=1e-6)

    def forward(self, states: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        states = self.before(states)
        return self.after(states + self.attention(states, positions, attend))


class Adapters(nn.Module):
    """The adapters of several exits: `exits[i]` layers of the target come before `adapters[i]`."""

    def __init__(self, exits: Sequence[int], width: int, heads: int, kv_heads: int):
        super().__init__()
        self.exits = tuple(exits)
        self.adapters = nn.ModuleList(Adapter(width, heads, kv_heads) for _ in self.exits)

    def behind(self, exits: Sequence[int]) -> dict[int, Adapter]:
        """Exit -> its adapter, for some of them."""
        return {exit: self.adapters[self.exits.index(exit)] for exit in exits}


@dataclass
class _Early:
    """Early half. exit: the layers that draft; watch: the shape asks how all exits fare. expanded: nodes in the
    order they were read; states: exit -> the residual stream [n, width] behind it, in the order of the staged rows;
    builder: what the tree grew with."""

    exit: int
    watch: bool
    builder: TreeBuilder | None = None
    expanded: list[int] = field(default_factory=list)
    states: dict[int, torch.Tensor] = field(default_factory=dict)

    def add(self, states: dict[int, torch.Tensor]) -> None:
        self.states |= {e: torch.cat([self.states[e], s]) if e in self.states else s for e, s in states.items()}


@register("drafter", "kangaroo")
@dataclass(frozen=True)
class Kangaroo(RowDrafter):
    """Draft from an early exit: the first `exits[0]` layers, an adapter, the target's head.

    The layers run in the target's own cache. Their exit states are kept, and verification feeds them to the other
    layers, so that a drafted token costs each layer once. Exit states of all text also pass the adapter, whose cache
    is the runner "draft"; where the target read text without it (a change of drafters), it does without.
    With `weights` None there is no adapter, just the target's final norm and head (for models trained that way).
    Of several exits the first is used, unless the shape chooses (`Del`).

    Sources: "Kangaroo: Lossless Self-Speculative Decoding via Double Early Exiting" (https://arxiv.org/abs/2404.18911;
    https://github.com/Equationliu/Kangaroo); "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding"
    (https://arxiv.org/abs/2404.16710; https://github.com/facebookresearch/LayerSkip). Departures: trees and sampling as
    well (theirs: greedy chains); the adapter adds to the normalised state (theirs: to the state itself; the last norm
    hides the difference in scale); the optimiser is Muon (theirs: AdamW). Draft & Verify, which leaves inner layers
    out, is `LayerSkip`.
    """

    weights: str | None = setting(
        "embedded",
        trust="owner",
        help="the adapters: 'embedded', a directory or a file; none: the target's own norm and head",
    )
    exits: tuple[int, ...] = setting((2,), ge=1, help="numbers of layers to draft from; the shape may choose")

    gives = RowDrafter.gives | {"exits"}
    by_text = True  # of one exit

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.exits or len(set(self.exits)) < len(self.exits):
            raise BadInput(f"Kangaroo(exits={list(self.exits)}): expected one or more different numbers of layers")

    @property
    def needs(self) -> frozenset:
        return frozenset(self.exits if self.weights else ())

    def default_shape(self) -> DraftShape:
        return ConfidenceStop(6, 0.6)

    def check(self, lm: LanguageModel) -> None:
        if max(self.exits) >= lm.layers:
            raise BadInput(
                f"Kangaroo(exits={list(self.exits)}): {lm.name!r} has {lm.layers} layers; exit before the last"
            )
        lm.check_layers()
        if self.weights is None:
            _ = lm.final_norm  # found, or refused

    def runners(self, lm: LanguageModel) -> dict[str, LanguageModel]:
        if self.weights is None:
            return {}
        module = weights.load("kangaroo", Adapters, self.weights, lm)
        if missing := [exit for exit in self.exits if exit not in module.exits]:
            raise BadInput(
                f"Kangaroo: no adapter behind {missing[0]} layers; {self.weights!r} has {list(module.exits)}"
            )
        name, parts = f"{lm.name} adapters", module.behind(self.exits)
        return {"draft": kept(lm, ("runner", module, self.exits), lambda: HeadModel(name, lm, module, parts))}

    def observe(self, state: State, r: Round, start: int, out: Output) -> None:
        runner = state.runners["draft"]
        positions = range(start, start + len(out.states[self.exits[0]]))
        for layer, exit in enumerate(self.exits):
            r.forward("draft", out.states[exit], positions, None, (), "prefill", layers=(layer,))
        runner.store.commit(range(len(positions)))

    def propose(self, state: State, r: Round, shape: DraftShape, depth: int, seeded: bool) -> DraftTree:
        chosen = shape.exit(state.memory) if "exits" in shape.needs else None
        early = state.memory["kangaroo"] = _Early(
            chosen if chosen in self.exits else self.exits[0], "exits" in shape.needs
        )
        r.step.figures = {"exit_layer": early.exit}
        return super().propose(state, r, shape, depth, seeded)

    def logits(self, builder: TreeBuilder, nodes: list[int]) -> torch.Tensor:
        early, positions = builder.memory["kangaroo"], builder.positions(nodes)
        mask = builder.visible(nodes, [*builder.expanded, *nodes])
        states = self._early(builder.round, early, [builder.tree.tokens[n] for n in nodes], positions, mask)
        if self.weights is None:
            return builder.state.runners["target"].model.exit_logits(states)
        layer = (self.exits.index(early.exit),)
        return builder.round.forward("draft", states, positions, mask, layers=layer).logits

    def _early(
        self, r: Round, early: _Early, tokens: list[int], positions: list[int], mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Run rows through the first layers only; what they gave on, [R, width]."""
        out = r.forward("target", tokens, positions, mask, (), "draft", self.exits, range(early.exit))
        early.add(out.states)
        return out.states[early.exit]

    def drafted(self, state: State, builder: TreeBuilder) -> None:
        early = state.memory["kangaroo"]
        early.expanded, early.builder = builder.expanded, builder

    def score(self, state: State, r: Round, tree: DraftTree, hidden: bool) -> torch.Tensor:
        early, runner, root = state.memory["kangaroo"], state.runners["target"], len(state.tokens) - 1
        want = (*(("hidden",) if hidden else ()), *self.exits)
        natural = list(range(len(tree)))
        order = [*early.expanded, *(node for node in natural if node not in early.expanded)]
        # nothing was read, or also what the shape dropped since: the tree anew
        if not early.expanded or -1 in early.expanded:
            runner.store.discard()
            early.states, order = {}, natural
        positions = [root + tree.depths[node] for node in order]
        mask = None if order == natural and tree.is_chain else tree.ancestors()[order][:, order]
        tokens = [tree.tokens[node] for node in order]
        if not early.states:
            out = r.forward("target", tokens, positions, mask, want=want)
        else:
            done = len(early.expanded)
            if done < len(order):
                self._early(r, early, tokens[done:], positions[done:], None if mask is None else mask[done:])
            rest = range(early.exit, runner.model.layers)
            out = r.forward("target", early.states[early.exit], positions, mask, want=want, layers=rest)
        early.add(out.states)
        tree.hidden = out.hidden
        if order == natural:
            return out.logits
        tree.slots = [order.index(node) for node in natural]
        tree.hidden = None if out.hidden is None else out.hidden[tree.slots]
        return out.logits[tree.slots]

    def on_verified(
        self, state: State, r: Round, tree: DraftTree, path: list[int], logits: torch.Tensor | None
    ) -> None:
        early, stays = state.memory.pop("kangaroo"), [0, *path]
        unread = [row for row, node in enumerate(stays) if node not in early.expanded and r.settings.level == "full"]
        rows = stays if tree.slots is None else [tree.slots[node] for node in stays]
        states = {exit: early.states[exit][rows] for exit in self.exits}
        found: dict[int, torch.Tensor] = {}
        if self.weights:  # every adapter reads what became text, whichever of them drafted it
            state.runners["draft"].store.discard()
            end = len(state.tokens) - 1
            asked, places = "all" if early.watch or unread else (), range(end - len(stays), end)
            for layer, exit in enumerate(self.exits):
                found[exit] = r.forward("draft", states[exit], places, None, asked, layers=(layer,)).logits
            r.commit("draft", range(len(stays)))
        elif early.watch or unread:
            found = {exit: state.runners["target"].model.exit_logits(states[exit]) for exit in self.exits}
        if unread:  # the distributions after nodes that the shape did not ask about
            early.builder.overread(found[early.exit][unread], [early.builder.base + 1 + row for row in unread])
        if early.watch:
            self._compare(state, r, found, logits[stays])

    def _compare(self, state: State, r: Round, found: dict[int, torch.Tensor], logits: torch.Tensor) -> None:
        """Tell the shape how the distributions of all exits compare with the target's at the nodes that became text:
        only at those, for what is drafted next must not depend on nodes that nobody tested."""
        start = len(state.tokens) - len(logits)
        agreed, sure = {}, {}

        def dist(rows: torch.Tensor) -> Distribution:
            return r.dist(rows, lambda row: state.tokens[: start + row])

        target = None if r.settings.sampling.greedy else dist(logits).scores.exp()
        for exit, rows in found.items():
            own = dist(rows)
            if target is None:
                agreed[exit] = [own.best(row) == state.tokens[start + row] for row in range(len(own))]
            else:
                agreed[exit] = torch.minimum(own.scores.exp(), target).sum(-1).tolist()
            sure[exit] = own.raw.amax(-1).exp().tolist()
        state.memory["exits"] = {"layers": state.runners["target"].model.layers, "agreed": agreed, "confidence": sure}
