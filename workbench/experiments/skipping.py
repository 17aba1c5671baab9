"""Which layers a self-speculative drafter may leave out."""

from collections.abc import Sequence

from workbench.api import decode
from workbench.decoders.speculative import Speculative
from workbench.engine.model import LanguageModel
from workbench.speculation.drafters.layer_skip import LayerSkip
from workbench.speculation.shapes.fixed import FixedLength


def search_skip(lm: LanguageModel, prompts: Sequence[str], tokens: int = 32, length: int = 4) -> tuple[int, ...]:
    """Layers to leave out when drafting for a target: greedy removal, measured on a few prompts.

    From the whole stack on, the layer goes whose absence leaves the most tokens per layer run, (1 − αᵈ⁺¹)/(1 − α) /
    (d·kept + L) at the best d up to `length`, where α is the share of tested drafts that was accepted in greedy
    decoding of `tokens` tokens. The best set on the way is the answer; it takes about L²/2 short runs.
    """

    def gain(skip: tuple[int, ...]) -> float:
        decoder = Speculative(drafter=LayerSkip(skip=skip), shape=FixedLength(length))
        fates = [fate for p in prompts for fate in decode(lm, p, decoder, max_new_tokens=tokens).drafts["fate"]]
        accepted, rejected = fates.count("accepted"), fates.count("rejected")
        return per_layer(accepted / max(1, accepted + rejected), lm.layers - len(skip), lm.layers, length)

    skip: tuple[int, ...] = ()
    found = [(0.0, skip)]
    while len(skip) < lm.layers - 1:
        tried = [tuple(sorted((*skip, layer))) for layer in range(lm.layers) if layer not in skip]
        best, skip = max((gain(one), one) for one in tried)
        found.append((best, skip))
    return max(found)[1]


def per_layer(rate: float, drafting: float, layers: int, most: int) -> float:
    """Expected tokens per layer run, at the best draft length up to `most`: acceptance `rate` at every depth,
    `drafting` layers for each draft, `layers` to verify them all."""
    return max(sum(rate**i for i in range(d + 1)) / (d * drafting + layers) for d in range(1, most + 1))
