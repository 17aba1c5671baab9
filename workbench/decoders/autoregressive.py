"""Plain decoding: one forward, one token."""

from dataclasses import dataclass

from workbench.declare import register
from workbench.decoders.base import Decoder, RoundLog, State
from workbench.engine.sampling import Sampling

__all__ = ["Autoregressive"]


@register("decoder", "autoregressive")
@dataclass(frozen=True)
class Autoregressive(Decoder):
    """The baseline every other decoder is measured against: greedy at temperature 0, else keyed sampling."""

    verified = ("equality with model.generate", "chi-square on the toy model")

    def claim(self, sampling: Sampling) -> str:
        return "exact" if sampling.greedy else "seed"

    def round(self, state: State, log: RoundLog) -> None:
        law = log.law(log.advance("target").logits)
        log.emit(law, [0], [log.choose(law, 0, len(state.tokens))], ["target"])
