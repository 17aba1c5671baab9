"""Plain decoding: one forward, one token."""

from dataclasses import dataclass

from workbench.declare import register
from workbench.decoders.base import Decoder, RoundLog, State
from workbench.engine.device_round import Template
from workbench.engine.distribution import Law
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings
from workbench.speculation.tree import DraftTree

__all__ = ["Autoregressive"]


@register("decoder", "autoregressive")
@dataclass(frozen=True)
class Autoregressive(Decoder):
    """The baseline every other decoder is measured against: greedy at temperature 0, else keyed sampling."""

    verified = ("equality with model.generate", "chi-square on the toy model")

    def claim(self, sampling: Sampling) -> str:
        return "exact" if sampling.greedy else "seed"

    def round(self, state: State, log: RoundLog) -> None:
        self.conclude(state, log, None, log.law(log.advance("target").logits))

    def template(self, settings: Settings) -> Template:
        return Template()

    def conclude(self, state: State, log: RoundLog, tree: DraftTree | None, law: Law) -> None:
        """Take the token. After a device round (`tree` is its root alone) the pending token's row is in flight."""
        if tree is not None:
            log.commit("target", [0])
        log.emit(law, [0], [log.choose(law, 0, len(state.tokens))], ["target"])
