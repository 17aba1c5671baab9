"""Speculative decoding: draft a tree, score it in one forward of the target, keep what the verifier accepts."""

from dataclasses import dataclass

import torch

from workbench.cache.stack import Stack
from workbench.declare import register, setting
from workbench.decoders.base import Decoder
from workbench.engine.distribution import Distribution
from workbench.engine.model import LanguageModel, require
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings, refuse_stateful
from workbench.engine.text import token_text
from workbench.errors import BadInput
from workbench.rounds import Round, State
from workbench.speculation.drafters import Drafter, DraftModel
from workbench.speculation.shapes import DraftShape
from workbench.speculation.tree import MAX_NODES, DraftTree
from workbench.speculation.verifiers import Outcome, SeededMatch, Verifier


@register("decoder", "speculative")
@dataclass(frozen=True)
class Speculative(Decoder):
    """A choice of drafter, shape and verifier.

    `shape=None` takes the drafter's own default. Every round emits the accepted drafts and one token of the target's; a
    round without drafts is one plain decoding step. Sources: "Fast Inference from Transformers via Speculative
    Decoding" (https://arxiv.org/abs/2211.17192); "Accelerating Large Language Model Decoding with Speculative Sampling"
    (https://arxiv.org/abs/2302.01318); for drafter, shape and verifier see the parts.
    """

    drafter: Drafter = setting(factory=DraftModel, family="drafter", help="who proposes tokens")
    shape: DraftShape | None = setting(None, family="shape", help="how many tokens, and where (default: the drafter's)")
    verifier: Verifier = setting(factory=SeededMatch, family="verifier", help="which drafts stand")

    verified = ("equality with model.generate", "enumeration of verifiers", "chi-square on the toy model")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape is None:
            object.__setattr__(self, "shape", self.drafter.default_shape())
        reason = self.drafter.refuses(self.shape) or self.verifier.refuses(self.drafter, self.shape)
        if reason:
            raise BadInput(reason)

    def guarantee(self, sampling: Sampling) -> str:
        return self.verifier.guarantee(sampling)

    def runners(self, lm: LanguageModel) -> dict[str, LanguageModel]:
        return {"target": lm, **self.drafter.runners(lm)}

    def caches(self, settings: Settings) -> dict[str, Stack | None]:
        return {**super().caches(settings), **self.drafter.caches()}

    def check(self, lm: LanguageModel, settings: Settings) -> None:
        for member, needs in ((self.verifier, self.verifier.needs & {"hidden"}), (self.drafter, self.drafter.needs)):
            require(lm, f"{member.family} {member.declared_name!r}", needs)
        self.verifier.check(settings, lm)
        self.drafter.check(lm)
        self.shape.check(self.drafter, lm)
        self.drafter.runners(lm)
        refuse_stateful(settings.sampling.processors, lm.vocab_size, lm.device)

    def observer(self) -> Drafter | None:
        return self.drafter if self.drafter.needs else None

    def first(self, state: State) -> tuple[str, ...]:
        return tuple(state.runners)

    def decode_round(self, state: State, r: Round) -> None:
        r.catch_up("target", len(state.tokens) - 1)
        root = len(state.tokens) - 1
        # 1. draft: depth is capped by the contexts and the cache's next maintenance, never by max_new_tokens
        depth = min(state.context_left, state.runners["target"].rows_left(root), MAX_NODES + 1) - 1
        start = r.now()
        tree = self.drafter.propose(state, r, self.shape, max(0, depth), self.verifier.seeded)
        r.step.ms["draft"] = (r.now() - start) * 1000
        # 2. score every node in one forward
        hidden = "hidden" in self.verifier.needs
        logits = self.drafter.score(state, r, tree, hidden)
        start = r.now()
        if hidden:
            self.verifier.score_hidden(state.runners["target"].model, tree)
        dist = r.dist(logits, lambda row: state.tokens + [tree.tokens[n] for n in tree.path(row)])
        r.record_time("verify", start)
        self.verify_and_commit(state, r, tree, dist, logits)

    def verify_and_commit(
        self,
        state: State,
        r: Round,
        tree: DraftTree,
        dist: Distribution,
        logits: torch.Tensor | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        """Verify the tree, append what stands and commit its rows: the round once all distributions are known, and
        in a device round the outcome too."""
        root, start = len(state.tokens) - 1, r.now()
        # 3. verify
        outcome = outcome or self.verify(dist, tree, root + 1, r)
        r.record_time("verify", start)
        # 4. append and commit: the cache holds all but the last token
        path = outcome.path
        ends = next((i for i, n in enumerate(path) if tree.tokens[n] in r.settings.eos_ids), None)
        drafted = [tree.tokens[n] for n in path]
        tokens, sources = [*drafted, outcome.token], [*(tree.drafters[n] for n in path), outcome.source]
        if ends is not None and r.forced(root + 1 + ends) is None:
            tokens, sources = tokens[: ends + 1], sources[: ends + 1]  # no token after the end of the text
        kept = r.append(dist, [0, *path][: len(tokens)], tokens, sources)
        stays = [0, *path[: kept - 1]]
        r.commit("target", stays if tree.slots is None else [tree.slots[n] for n in stays])
        self.drafter.on_verified(state, r, tree, path[: kept - 1], logits)
        self.shape.observe(state.memory, tree, len(path))
        self.record(r, dist, tree, outcome, kept)

    def verify(self, dist: Distribution, tree: DraftTree, position: int, r: Round) -> Outcome:
        """The verifier's outcome; forced tokens are matched, as a plain decoder would take them."""
        forced = any(r.forced(position + depth) is not None for depth in range(max(tree.depths) + 1))
        verifier = SeededMatch() if forced else self.verifier
        return verifier.verify(
            dist, tree, position, r.settings.noise_seed, lambda row, place: r.choose(dist, row, place)
        )

    def record(self, r: Round, dist: Distribution, tree: DraftTree, outcome: Outcome, kept: int) -> None:
        """Note the tree and its outcome, of which `kept` tokens became text, in the round's step."""
        step = r.step
        for node in range(1, len(tree)) if r.settings.constraint else ():
            if tree.parents[node] in (0, *outcome.path) and dist.forbids(tree.parents[node], tree.tokens[node]):
                outcome.fates[node], outcome.reasons[node] = "rejected", "grammar"
        for node in outcome.path[kept:]:
            outcome.fates[node] = "after_end"
        step.mode = "plain" if len(tree) == 1 else "chain" if tree.is_chain else "tree"
        step.drafted, step.accepted = len(tree) - 1, sum(fate == "accepted" for fate in outcome.fates[1:])
        step.bonus = kept > len(outcome.path) and outcome.source == "bonus"
        step.budget, step.depth = self.shape.budget, max(tree.depths)
        step.stop_reason = tree.stop_reason or ("budget" if len(tree) > 1 else None)
        if len(tree) == 1 or not r.logging:
            return
        tokenizer = r.state.runners["target"].model.tokenizer
        columns = {
            "node": list(range(len(tree))),
            "parent": tree.parents,
            "token_id": tree.tokens,
            "kind": tree.kinds,
            "drafter": tree.drafters,
            "depth": tree.depths,
            "fate": outcome.fates,
            "reason": outcome.reasons,
            "rank": tree.ranks,
            "q": tree.q,
            "u": outcome.us,
            **dist.compare(tree),
        }
        if any(outcome.lossy):
            columns["lossy"] = outcome.lossy
        step.drafts = {name: column[1:] for name, column in columns.items()}
        step.drafts["text"] = [token_text(tokenizer, token) for token in tree.tokens[1:]]
