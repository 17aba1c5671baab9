"""Attention sinks and a recent window."""

from dataclasses import dataclass

import torch

from workbench.cache.plan import CacheMethod, LayerView
from workbench.declare import register, setting


@register("policy", "streaming")
@dataclass(frozen=True)
class StreamingLLM(CacheMethod):
    """Keep the first `sinks` tokens and the last `window`; what lies between is gone.

    `positions="slot"` reads every key at its place in the cache, as in the paper: the sinks' stored keys are turned,
    once and when they are read, by the number of tokens dropped behind them. "baked" leaves them where they were.
    "capped" turns the queries: no row reads a sink from further than `sinks` + `window` tokens away, as in LM-Infinite.

    Source: "Efficient Streaming Language Models with Attention Sinks" (https://arxiv.org/abs/2309.17453;
    https://github.com/mit-han-lab/streaming-llm). Departures: acts every `interval` tokens, hence up to `interval` more
    in between; "baked" is the default, since it fits every model. "capped": "LM-Infinite: Zero-Shot Extreme Length
    Generalization for Large Language Models" (https://arxiv.org/abs/2308.16137;
    https://github.com/Glaciohound/LM-Infinite), which reads all sinks from one distance and can look into the middle.
    """

    sinks: int = setting(4, ge=0, le=1024, unit="tokens", help="first tokens that are never dropped")
    window: int = setting(252, ge=1, unit="tokens", help="newest tokens that are kept")
    interval: int = setting(32, ge=1, le=4096, unit="tokens", help="committed tokens between two maintenances")
    positions: str = setting(
        "baked", choices=("baked", "slot", "capped"), help="where keys are read: text, cache, or sinks never from far"
    )

    @property
    def newest(self) -> int:
        return self.window

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"slot_positions"} if self.positions != "baked" else ())

    @property
    def budget(self) -> int:
        return self.sinks + self.window

    def importance(self, view: LayerView) -> torch.Tensor:
        return -view.positions.double()
