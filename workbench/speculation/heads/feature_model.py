"""Trained parts with keys and values of their own as `LanguageModel`s, so that they can be runners of a decoder."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from workbench.cache.store import CacheStore, PlainStore
from workbench.engine.attention import attend
from workbench.engine.model import LanguageModel, Output, chosen, facts
from workbench.models.digest import Digest
from workbench.speculation.heads.modules import Attend, Attention

__all__ = ["FeatureModel", "HeadModel"]


class HeadModel(LanguageModel):
    """A module of `layers` layers with one `attention` each, and the target's head behind it. parts: what of the module
    belongs to it, by name (default: all of it)."""

    def __init__(
        self, name: str, key: tuple, lm: LanguageModel, module: nn.Module, attention: Attention, layers: int = 1,
        parts: dict[str, nn.Module] | None = None,
    ):  # fmt: skip
        self.name, self.key, self.target, self.module, self.layers = name, key, lm, module, layers
        self._digest, self._attention = Digest(module), attention
        self.tokenizer, self.vocab_size, self.context = lm.tokenizer, lm.vocab_size, lm.context
        self.device, self.dtype, self.eos_ids = lm.device, lm.dtype, lm.eos_ids
        self.kv_heads, self.head_dim = attention.kv_heads, attention.head_dim
        parts = {"": module} if parts is None else parts
        named = ((f"{part}.{n}".lstrip("."), p) for part, inner in parts.items() for n, p in inner.named_parameters())
        self._weights = dict(named)
        self.parameters = sum(p.numel() for p in self._weights.values())
        self.weight_bytes = sum(p.nbytes for p in self._weights.values())

    def new_store(self) -> PlainStore:
        return PlainStore(self.layers)

    def attend(self, cache: CacheStore, layer: int = 0) -> Attend:
        """The attention of one layer over what a store holds of it."""

        def look(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            cache.stage(layer, k[0], v[0])
            return attend(q, cache.segments(layer), self.head_dim**-0.5)

        return look

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.target.head(hidden)

    def forward_flops(self, rows: int, context: int) -> int:
        """Of the part, and of the target's head for each of its layers."""
        width, attended = self._attention.out.out_features, self._attention.heads * self.head_dim
        return rows * (2 * self.parameters + self.layers * (2 * width * self.vocab_size + 4 * attended * context))

    def kv_bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    def describe(self) -> dict[str, Any]:
        shapes = {n: (*p.shape, str(p.dtype)) for n, p in self._weights.items()}
        return facts(self, type(self.module).__name__, shapes, self._digest.of(self.module))


class FeatureModel(HeadModel):
    """One attention layer over rows of features.

    module: `module(rows [1, R, n], positions [R], attend)` -> (features, states for the head) [1, R, width].
    blank(ids): the rows [R, n] of tokens whose features nobody knows, which is what a forward of ids reads.
    """

    gives = frozenset({"hidden"})

    def __init__(self, name: str, module: nn.Module, lm: LanguageModel, blank: Callable[[Sequence[int]], torch.Tensor]):
        super().__init__(name, ("part", name, id(module)), lm, module, module.attention)
        self.embed = blank

    @torch.inference_mode()
    def forward(
        self,
        tokens: Sequence[int] | torch.Tensor,
        positions: Sequence[int],
        cache: CacheStore,
        mask: torch.Tensor | None = None,
        layers: Sequence[int] | None = None,
        logits_at: str | Sequence[int] = "all",
        want: Sequence[str] = (),
    ) -> Output:
        """See `LanguageModel`; `tokens` are rows of features [R, n], and hidden are the features that come next."""
        given = isinstance(tokens, torch.Tensor) and tokens.is_floating_point()
        rows = tokens if given else self.embed(tokens)
        cache.begin(positions, mask)
        try:
            places = torch.as_tensor(positions, device=self.device)
            features, states = self.module(rows[None], places, self.attend(cache))
        finally:
            cache.end()
        return Output(self.head(chosen(states[0], logits_at)), features[0] if "hidden" in want else None)
