"""One decoder layer that guesses the target's next features, and reads its own guesses."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from workbench.declare import register, setting
from workbench.engine.model import LanguageModel, Output
from workbench.rounds import Round, State
from workbench.speculation.drafters.base import RowDrafter
from workbench.speculation.heads import weights
from workbench.speculation.heads.model import HeadModel
from workbench.speculation.heads.modules import Attend, Attention, Norm
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.fixed import FixedLength
from workbench.speculation.tree import DraftTree
from workbench.speculation.tree_builder import TreeBuilder


class Block(nn.Module):
    """A pre-norm decoder layer: attention, then a gated MLP."""

    def __init__(self, width: int, heads: int, kv_heads: int, inner: int):
        super().__init__()
        self.before = Norm(width)
        self.attention = Attention(width, heads, kv_heads)
        self.between = Norm(width)
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        x = x + self.attention(self.before(x), positions, attend)
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class EagleLayer(nn.Module):
    """A feature and the token after it -> one decoder layer -> the next feature, and the state the head reads.

    sampling: FSPAD. The pair is widened to 4·width, gated by the token, and projected back, so that the token picks
    its feature; and the head reads a branch of its own, so that features and logits do not pull at one vector.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, inner: int, sampling: bool = False):
        super().__init__()
        self.token = Norm(width)  # embeddings are far smaller than features
        if sampling:
            self.widen, self.gate = nn.Linear(2 * width, 4 * width), nn.Linear(width, 4 * width)
            self.narrow = nn.Linear(4 * width, width)
            self.branch = nn.Linear(width, width)
        else:
            self.fuse = nn.Linear(2 * width, width)
        self.sampling = sampling
        self.block = Block(width, heads, kv_heads, inner)
        self.norm = Norm(width)

    @property
    def attention(self) -> Attention:
        return self.block.attention

    def forward(
        self, pairs: torch.Tensor, positions: torch.Tensor, attend: Attend
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """pairs: [B, R, 2·width], of each token the feature before it and its embedding -> the feature after it and the
        state the head reads, [B, R, width] each."""
        feature, token = pairs.chunk(2, -1)
        token = self.token(token)
        pairs = torch.cat([feature, token], -1)
        x = self.narrow(self.widen(pairs) * self.gate(token).sigmoid()) if self.sampling else self.fuse(pairs)
        x = self.norm(self.block(x, positions, attend))
        return x, x + self.branch(x) if self.sampling else x


@register("drafter", "eagle")
@dataclass(frozen=True)
class Eagle(RowDrafter):
    """From the target's feature before a token and the token, one decoder layer gives the feature after it.

    The target's head turns it into a distribution; below the root the layer goes on from features of its own. Its cache
    holds committed tokens with the target's true features; a round's guesses are dropped. Features nobody knows (before
    the first token, or read under another drafter) count as zeros.

    Sources: "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty" (https://arxiv.org/abs/2401.15077;
    https://github.com/SafeAILab/EAGLE); variant `fspad`: "Boosting Lossless Speculative Decoding via Feature Sampling
    and Partial Alignment Distillation" (https://arxiv.org/abs/2408.15562), its layers reconstructed from the abstract.
    Departures: the loss is the cross-entropy with the target's distribution and half the features' SmoothL1 (theirs: a
    tenth, and the whole), over a recursion of two steps, as in "Learning Harmonized Representations for Speculative
    Sampling" (https://arxiv.org/abs/2408.15766; https://github.com/HArmonizedSS/HASS); the state is normalised before
    the head; the token's embedding and the layer's input are normalised (theirs: neither); the optimiser is Muon
    (theirs: AdamW). `fspad` has the same loss, so its partial alignment is the extra branch alone.
    """

    variant: str = setting("eagle", choices=("eagle", "fspad"), help="the layer's input and output: see above")
    weights: str = setting(
        "embedded", trust="owner", help="a trained layer: 'embedded', a name of `models make`, a folder or file"
    )

    needs = frozenset({"hidden"})

    def default_shape(self) -> DraftShape:
        return FixedLength(3)

    def model(self, lm: LanguageModel) -> HeadModel:
        """The layer for a target; raises BadInput where there is none."""
        module = weights.load(self.variant, EagleLayer, self.weights, lm)

        def blank(tokens) -> torch.Tensor:
            embedded = lm.embed(tokens)
            return torch.cat([torch.zeros_like(embedded), embedded], -1)

        parts = {"layer": module}
        return weights.kept(lm, ("runner", module), lambda: HeadModel(self.variant, lm, module, parts, blank))

    def check(self, lm: LanguageModel) -> None:
        self.model(lm)

    def runners(self, lm: LanguageModel) -> dict[str, LanguageModel]:
        return {"draft": self.model(lm)}

    def observe(self, state: State, r: Round, start: int, out: Output) -> None:
        """The tokens read, with the target's features before them, go into the layer's own cache."""
        self._learn(state, start, out.hidden)
        runner, end = state.runners["draft"], start + len(out.hidden)
        first = runner.store.length
        if first < end:
            r.forward("draft", self._rows(state, end), range(first, end), None, "last", "prefill")
            runner.store.commit(range(end - first))
            state.memory[self.declared_name] = (end - 1, out.hidden[-1:].clone())

    def max_depth(self, state: State) -> int:
        return state.runners["draft"].model.context - len(state.tokens)

    def logits(self, builder: TreeBuilder, nodes: list[int]) -> torch.Tensor:
        if builder.features is None:
            builder.features = {}
        tree, r, state = builder.tree, builder.round, builder.state
        if 0 in nodes:
            first, end = state.runners["draft"].store.length, len(state.tokens)
            rows = self._rows(state, end)
            out = r.forward("draft", rows, range(first, end), logits_at="last", want=("hidden",))
            r.commit("draft", range(end - first))  # the root is committed
            builder.features[0] = out.hidden[-1]
            return out.logits
        before = torch.stack([builder.features[tree.parents[node]] for node in nodes])
        embedded = state.runners["target"].model.embed([tree.tokens[node] for node in nodes])
        mask = builder.visible(nodes, [*builder.expanded[1:], *nodes])
        rows = torch.cat([before, embedded], -1)
        out = r.forward("draft", rows, builder.positions(nodes), mask, want=("hidden",))
        builder.features |= zip(nodes, out.hidden, strict=True)
        return out.logits

    def drafted(self, state: State, builder: TreeBuilder) -> None:
        state.runners["draft"].store.discard()

    def on_verified(
        self, state: State, r: Round, tree: DraftTree, path: list[int], logits: torch.Tensor | None
    ) -> None:
        self._learn(state, len(state.tokens) - 2 - len(path), tree.hidden[[0, *path]])

    def _learn(self, state: State, start: int, features: torch.Tensor) -> None:
        """Keep the target's features after the tokens from `start` on, and those before that are still to be read."""
        first, known = state.memory.get(self.declared_name, (start, features[:0]))
        needed = max(first, state.runners["draft"].store.length - 1)
        if first + len(known) == start and needed < start:
            first, known = needed, torch.cat([known[needed - first :], features])
        else:
            first, known = start, features.clone()
        state.memory[self.declared_name] = (first, known)

    def _rows(self, state: State, end: int) -> torch.Tensor:
        """[n, 2·width] what the layer reads for the tokens from the end of its cache up to `end`."""
        runner = state.runners["draft"]
        start = runner.store.length
        rows = runner.model.embed(state.tokens[start:end])
        first, known = state.memory.get(self.declared_name, (start, rows[:0]))
        low, high = max(first, start - 1), min(first + len(known), end - 1)  # features after tokens low .. high - 1
        if low < high:
            rows[low + 1 - start : high + 1 - start, : known.shape[1]] = known[low - first : high - first]
        return rows
