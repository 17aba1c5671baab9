"""Mirostat: hold the surprise of the text at a target by feedback on the cut."""

import math
from dataclasses import dataclass, replace

import torch

from workbench.control import signals
from workbench.control.gate import Reading
from workbench.declare import register, setting
from workbench.decoders.base import Decoder
from workbench.engine.distribution import Distribution
from workbench.engine.model import LanguageModel
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings
from workbench.errors import BadInput
from workbench.rounds import Round, State


def zipf_size(logp: torch.Tensor, bits: float) -> int:
    """How many of the likeliest tokens have, under Zipf's rule, a cross-entropy of `bits` on average: 0 to V.

    logp: [V]. The exponent s is fitted to the hundred likeliest; k = (ε 2^bits / (1 − V^−ε))^(1/s) with ε = s − 1.
    """
    top = logp.sort(descending=True).values[:101].double().clamp_min(-1e4)
    steps = torch.arange(1, len(top), dtype=torch.float64).reciprocal().log1p().to(top.device)
    s = max((-top.diff() @ steps / (steps @ steps)).item(), 1e-6)
    spread, excess = math.log(len(logp)), s - 1
    if abs(excess) > 1e-9:  # else its limit
        spread = math.expm1(-excess * spread) / -excess
    return round(math.exp(min((bits * math.log(2) - math.log(spread)) / s, math.log(len(logp)))))


@register("decoder", "mirostat")
@dataclass(frozen=True)
class Mirostat(Decoder):
    """Keep tokens of surprise −log2 p ≤ mu, draw one, then mu ← mu − eta·(surprise − tau).

    This is Mirostat 2.0; `version=1` is the paper's algorithm, which keeps the k + 1 likeliest, k by an estimate of
    Zipf's exponent. Reads the model's next-token distribution; so temperature and the other cuts are left unset. The
    feedback is the *untruncated* surprise unless `feedback="renormalised"`, which some ports use and which holds
    another quantity. Where tau exceeds the model's own entropy nothing is cut and mu would wind up without bound:
    `freeze` stops the update while no token is cut (with `freeze=False`: mean surprise − tau = (mu_1 − mu_{n+1}) /
    (eta·n), exactly).

    Source: "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity"
    (https://arxiv.org/abs/2007.14966; https://github.com/basusourya/mirostat); the variant 2.0, as ports of it use; the
    freeze, on by default, is ours; V is the model's vocabulary (theirs: 50 000).
    """

    tau: float = setting(3.0, gt=0, le=20, unit="bits", help="surprise to hold")
    eta: float = setting(1.0, gt=0, le=2, help="how strongly an error moves the cut")
    feedback: str = setting("full", choices=("full", "renormalised"), help="distribution whose surprise is fed back")
    freeze: bool = setting(True, help="leave mu alone while nothing is cut and it would only grow")
    version: int = setting(2, choices=(1, 2), help="cut by surprise (2), or to a number of tokens by Zipf's rule (1)")

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
        own = replace(r.settings.sampling, temperature=1.0)
        whole = own.dist(r.advance("target").logits, lambda row: state.tokens)
        log2 = whole.scores / math.log(2)
        kept = -log2 <= mu
        if self.version == 1:
            top = whole.scores.topk(min(zipf_size(whole.scores[0], mu) + 1, log2.shape[1])).indices
            kept = torch.zeros_like(kept).scatter(-1, top, True) & (log2 > -torch.inf)
        kept[0, whole.best(0)] = True
        saturated = bool((kept | (whole.scores == -torch.inf)).all())
        scores = whole.scores.masked_fill(~kept, -torch.inf).log_softmax(-1)
        dist = Distribution(whole.raw, scores, [() if saturated else ("mirostat",)], allowed=whole.allowed)
        token = r.choose(dist, 0, len(state.tokens))
        surprise = signals.surprise(log2 if self.feedback == "full" else scores / math.log(2), token).item()
        if not saturated:
            r.decide("mirostat", Reading("surprise", "bits", surprise, surprise, mu), "cut")
        if not (self.freeze and saturated and surprise < self.tau):
            mu -= self.eta * (surprise - self.tau)
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
