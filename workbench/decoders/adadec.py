"""AdaDec: where the model is uncertain, look a few tokens ahead before choosing."""

from dataclasses import dataclass

from workbench.control.gate import Gate
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
    """Where the entropy (nats) is `threshold` or more, or at its `quantile` of the run so far, the likeliest
    `candidates` are each followed greedily for `lookahead` tokens; the one whose tokens have the highest mean
    log-probability is taken.

    Elsewhere, and with one candidate or no lookahead, this is greedy decoding. What was looked at is dropped.

    Source: "AdaDec: A Uncertainty-Guided Adaptive Decoding Framework for LLM-based Code Generation"
    (https://arxiv.org/abs/2506.08980; https://github.com/SYSUSELab/AdaDec). There, the threshold is learned for each
    model, the prefix is read anew at every token, and lookahead also stops at the end of an indented block.
    """

    threshold: float = setting(1.0, ge=0, unit="nats", help="entropy from which on it looks ahead")
    candidates: int = setting(3, ge=1, le=64, help="tokens that are compared")
    lookahead: int = setting(5, ge=0, le=256, unit="tokens", help="how far each of them is followed")
    quantile: float | None = setting(None, ge=0, le=1, help="in place of the threshold: a quantile of the run so far")

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
        gate = Gate(threshold=self.threshold, quantile=self.quantile, when="at least")
        reading, token = gate.read(dist, 0, state.memory, "adadec"), r.choose(dist, 0, position)
        if reading.open and r.forced(position) is None and self.candidates > 1 and self.lookahead:
            root, scores = search.begin(state, "lookahead"), dist.scores[0]
            ids = scores.topk(min(self.candidates, len(scores))).indices.tolist()
            ahead = search.grow(r, dist, [(root, 0, id) for id in ids if scores[id] > -float("inf")])
            first = [one.known[0]["token_id"] for one in ahead]
            for step in range(1, self.lookahead + 1):
                live = {place: one for place, one in enumerate(ahead) if one.fate == "live"}
                if not live:
                    break
                r.log_hypotheses(live.values())
                found, given = search.read(r, [*live.values()], "lookahead"), r.forced(position + step)
                taken = [found.best(row) if given is None else given for row in range(len(live))]
                picks = [*zip(live.values(), range(len(live)), taken, strict=True)]
                for place, one in zip(live, search.grow(r, found, picks), strict=True):
                    ahead[place] = one
            for one in ahead:
                one.score = one.logp / (len(one.state.tokens) - position)
            best = max(range(len(ahead)), key=lambda place: ahead[place].score)
            for place, one in enumerate(ahead):
                one.fate = "won" if place == best else "pruned"
            r.log_hypotheses(ahead)
            alternatives = [[id, one.score] for id, one in zip(first, ahead, strict=True)]
            r.decide("adadec", reading, "kept" if first[best] == token else "reranked", alternatives)
            token = first[best]
        r.append(dist, [0], [token], ["target"])
