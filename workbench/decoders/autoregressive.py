"""Plain decoding: one forward, one token."""

from dataclasses import dataclass

from workbench.declare import register
from workbench.decoders.base import Decoder
from workbench.engine.sampling import Sampling
from workbench.rounds import Round, State


@register("decoder", "autoregressive")
@dataclass(frozen=True)
class Autoregressive(Decoder):
    """The baseline every other decoder is measured against: greedy at temperature 0, else seeded sampling.

    Source: greedy search and multinomial sampling of transformers
    (https://huggingface.co/docs/transformers/generation_strategies).
    """

    verified = ("equality with model.generate", "chi-square on the toy model")

    def guarantee(self, sampling: Sampling) -> str:
        return "exact" if sampling.greedy else "seeded"

    def decode_round(self, state: State, r: Round) -> None:
        dist = r.dist(r.advance("target").logits)
        r.append(dist, [0], [r.choose(dist, 0, len(state.tokens))], ["target"])
