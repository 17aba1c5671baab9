"""AdaDec: where the model is uncertain, look a few tokens ahead before choosing."""

from dataclasses import dataclass

from workbench.declare import register, setting
from workbench.decoders.base import Decoder
from workbench.engine.model import LanguageModel
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings, refuse_stateful
from workbench.errors import BadInput
from workbench.rounds import Round, State, search


@register("decoder", "adadec")
@dataclass(frozen=True)
class AdaDec(Decoder):
    """Where the entropy (nats) is `threshold` or more, the likeliest `candidates` are each followed
    greedily for `lookahead` tokens; the one whose tokens have the highest mean log-probability is taken.

    Elsewhere, and with one candidate or no lookahead, this is greedy decoding. What was looked at is dropped.

    Source: "AdaDec: A Uncertainty-Guided Adaptive Decoding Framework for LLM-based Code Generation"
    (https://arxiv.org/abs/2506.08980; https://github.com/SYSUSELab/AdaDec). There, the threshold is learned for each
    model, the prefix is read anew at every token, and lookahead also stops at the end of an indented block.
    """

    threshold: float = setting(1.0, ge=0, unit="nats", help="entropy from which on it looks ahead")
    candidates: int = setting(3, ge=1, le=64, help="tokens that are compared")
    lookahead: int = setting(5, ge=0, le=256, unit="tokens", help="how far each of them is followed")

    searches = True
    verified = ("equality with greedy decoding in its neutral settings",)

    def guarantee(self, sampling: Sampling) -> str:
        return "exact" if self.candidates == 1 or not self.lookahead else "own"

    def check(self, lm: LanguageModel, settings: Settings) -> None:
        if not settings.sampling.greedy:
            raise BadInput("adadec: expected temperature=0, as its tokens are not drawn")
        refuse_stateful(settings.sampling.processors, lm.vocab_size, lm.device, "it is called for every candidate")

    def decode_round(self, state: State, r: Round) -> None:
        dist, position = r.dist(r.advance("target").logits), len(state.tokens)
        raw = dist.raw[0]
        entropy = -(raw.exp() * raw.clamp_min(-1e4)).sum().item()
        token, pauses = r.choose(dist, 0, position), entropy >= self.threshold and r.forced(position) is None
        if pauses and self.candidates > 1 and self.lookahead:
            root = search.begin(state, "lookahead")
            ids = dist.scores[0].topk(min(self.candidates, len(raw))).indices.tolist()
            ahead = search.grow(r, dist, [(root, 0, id) for id in ids if dist.scores[0, id] > -float("inf")])
            first = [one.known[0]["token_id"] for one in ahead]
            for _ in range(self.lookahead):
                live = {place: one for place, one in enumerate(ahead) if one.fate == "live"}
                if not live:
                    break
                r.log_hypotheses(live.values())
                found = search.read(r, [*live.values()], "lookahead")
                picks = []
                for row, one in enumerate(live.values()):
                    given = r.forced(len(one.state.tokens))
                    picks.append((one, row, found.best(row) if given is None else given))
                for place, one in zip(live, search.grow(r, found, picks), strict=True):
                    ahead[place] = one
            for one in ahead:
                one.score = one.logp / (len(one.state.tokens) - position)
            best = max(range(len(ahead)), key=lambda place: ahead[place].score)
            for place, one in enumerate(ahead):
                one.fate = "won" if place == best else "pruned"
            r.log_hypotheses(ahead)
            r.step.decisions.append({
                "controller": "adadec", "signals": [{"name": "entropy", "value": entropy, "unit": "nats"}],
                "threshold": self.threshold, "action": "reranked" if first[best] != token else "kept",
                "alternatives": [[id, one.score] for id, one in zip(first, ahead, strict=True)],
            })  # fmt: skip
            token = first[best]
        r.append(dist, [0], [token], ["target"])
