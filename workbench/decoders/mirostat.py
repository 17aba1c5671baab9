"""Mirostat 2.0: hold the surprise of the text at a target by feedback on the cut."""

import math
from dataclasses import dataclass

import torch

from workbench.declare import register, setting
from workbench.decoders.base import Decoder
from workbench.engine.distribution import Distribution
from workbench.engine.model import LanguageModel
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings
from workbench.errors import BadInput
from workbench.rounds import Round, State


@register("decoder", "mirostat")
@dataclass(frozen=True)
class Mirostat(Decoder):
    """Keep tokens of surprise −log2 p ≤ mu, draw one, then mu ← mu − eta·(surprise − tau).

    This is Mirostat 2.0; the paper's first algorithm, which cuts to k tokens by an estimate of Zipf's exponent, is not
    here. Reads the model's next-token distribution; so temperature and the other cuts are left unset. The feedback
    is the *untruncated* surprise unless `feedback="renormalised"`, which some ports use and which holds
    another quantity. Where tau exceeds the model's own entropy nothing is cut and mu would wind up without bound:
    `freeze` stops the update while no token is cut (with `freeze=False`: mean surprise − tau = (mu_1 − mu_{n+1}) /
    (eta·n), exactly).

    Source: "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity"
    (https://arxiv.org/abs/2007.14966; https://github.com/basusourya/mirostat); the variant 2.0, as ports of it use; the
    freeze, on by default, is ours.
    """

    tau: float = setting(3.0, gt=0, le=20, unit="bits", help="surprise to hold")
    eta: float = setting(1.0, gt=0, le=2, help="how strongly an error moves the cut")
    feedback: str = setting("full", choices=("full", "renormalised"), help="distribution whose surprise is fed back")
    freeze: bool = setting(True, help="leave mu alone while nothing is cut and it would only grow")

    def guarantee(self, sampling: Sampling) -> str:
        return "own"

    def check(self, lm: LanguageModel, settings: Settings) -> None:
        sampling = settings.sampling
        if sampling.temperature not in (0, 1) or sampling.filters:
            raise BadInput(
                "mirostat cuts the model's own distribution: leave temperature, top_k, top_p, min_p, typical_p unset"
            )

    def decode_round(self, state: State, r: Round) -> None:
        mu = state.memory.get("mu", 2 * self.tau)
        own = Sampling(temperature=1.0, processors=r.settings.sampling.processors)
        whole = own.dist(r.advance("target").logits, lambda row: state.tokens)
        bits = whole.scores / -math.log(2)
        kept = bits <= mu
        kept[0, whole.best(0)] = True
        saturated = bool(kept.all())
        scores = whole.scores.masked_fill(~kept, -torch.inf).log_softmax(-1)
        dist = Distribution(whole.raw, scores, [() if saturated else ("mirostat",)])
        token = r.choose(dist, 0, len(state.tokens))
        surprise = (bits if self.feedback == "full" else scores / -math.log(2))[0, token].item()
        error = surprise - self.tau
        frozen = self.freeze and saturated and error < 0
        if not frozen:
            mu -= self.eta * error
        r.append(dist, [0], [token], ["target"])
        count, total = state.memory.get("count", 0) + 1, state.memory.get("total", 0.0) + surprise
        state.memory |= {"mu": mu, "count": count, "total": total}
        r.step.figures = {
            "mu_bits": mu,
            "surprise_bits": surprise,
            "mean_surprise_bits": total / count,
            "kept_mass": whole.scores[kept].exp().sum().item(),
            "saturated": saturated,
        }
        if not saturated:
            r.step.decisions.append(
                {"controller": "mirostat", "signals": {"mu_bits": mu}, "action": "cut", "threshold": mu}
            )
