"""Plain decoding: one forward, one token."""

from dataclasses import dataclass

from workbench.declare import register
from workbench.decoders.base import Decoder, Round, State
from workbench.device.forward import DeviceTree
from workbench.engine.distribution import Distribution
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings
from workbench.speculation.tree import DraftTree

__all__ = ["Autoregressive"]


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
        self.verify_and_commit(state, r, None, r.dist(r.advance("target").logits))

    def device_tree(self, settings: Settings) -> DeviceTree:
        return DeviceTree()

    def verify_and_commit(self, state: State, r: Round, tree: DraftTree | None, dist: Distribution) -> None:
        """Take the token. After a device round (`tree` is its root alone) the pending token's row is in flight."""
        if tree is not None:
            r.commit("target", [0])
        r.append(dist, [0], [r.choose(dist, 0, len(state.tokens))], ["target"])
