"""What a forward pass of a `transformers` model costs, from the shapes of its weights and of what it caches."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")


@dataclass(frozen=True)
class Costs:
    """Counts of weights and their bytes: in products for every row (`dense`), and in all experts together, of which a
    row meets the share `chosen`. cached: per layer KV heads, width of keys, width of values. heads: of the queries."""

    dense: int
    dense_bytes: int
    experts: int
    expert_bytes: int
    chosen: float
    heads: int
    cached: tuple[tuple[int, int, int], ...]

    def flops(self, rows: int, context: int) -> int:
        """Multiply-adds counted twice: the weights a row meets, and its attention to the context."""
        attention = 2 * self.heads * context * sum(keys + values for _, keys, values in self.cached)
        return rows * (2 * (self.dense + round(self.chosen * self.experts)) + attention)

    def weight_bytes(self, rows: int) -> int:
        """Bytes of the weights that a forward of some rows reads: of the experts those that one row at least is likely
        to meet, where rows choose independently."""
        met = 1 - (1 - self.chosen) ** rows
        return self.dense_bytes + round(met * self.expert_bytes)

    def kv_bytes(self, itemsize: int) -> int:
        """Bytes of one token's keys and values over all layers."""
        return itemsize * sum(heads * (keys + values) for heads, keys, values in self.cached)


def costs_of(model: nn.Module, cached: Sequence[tuple[int, int, int]]) -> Costs:
    """The costs of a model. Embeddings are looked up, not multiplied, unless one is the head as well."""
    config = model.config.get_text_config()
    count, chosen = _first(config, EXPERTS), _first(config, CHOSEN)
    head = {id(p) for p in model.get_output_embeddings().parameters()}
    looked_up = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()} - head
    sums = {"dense": [0, 0], "experts": [0, 0]}
    for name, weight in model.named_parameters():
        if id(weight) not in looked_up:
            several = weight.dim() > 2 and weight.shape[0] == count  # all experts side by side
            routed = chosen and count and (several or re.search(r"\bexperts\.\d+\.", name))
            kind = "experts" if routed else "dense"
            sums[kind][0] += weight.numel()
            sums[kind][1] += weight.nbytes
    share = min(1.0, chosen / count) if chosen and count else 1.0
    return Costs(*sums["dense"], *sums["experts"], share, config.num_attention_heads, tuple(cached))


def _first(config: Any, names: Sequence[str]) -> int:
    places = (config, getattr(config, "ffn_config", None))
    found = (getattr(place, name, None) for place in places for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), 0)
