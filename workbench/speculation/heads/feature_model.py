"""A trained part with keys and values of its own as a `LanguageModel`, so that it can be a runner of a decoder."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from workbench.cache.store import CacheStore, PlainStore
from workbench.engine.attention import attend
from workbench.engine.model import LanguageModel, Output, chosen, facts
from workbench.models.digest import Digest

__all__ = ["FeatureModel"]


class FeatureModel(LanguageModel):
    """One attention layer over rows of features, with the target's head behind it.

    module: `module(rows [1, R, n], positions [R], attend)` -> (features, states for the head) [1, R, width], with its
    attention's `heads`, `kv_heads` and `head_dim` in `module.attention`. blank(ids): the rows [R, n] of tokens whose
    features nobody knows, which is what a forward of ids reads.
    """

    gives = frozenset({"hidden"})

    def __init__(self, name: str, module: nn.Module, lm: LanguageModel, blank: Callable[[Sequence[int]], torch.Tensor]):
        self.module, self.target, self._blank, self._digest = module, lm, blank, Digest(module)
        self.name, self.key, self.tokenizer = name, ("part", name, id(module)), lm.tokenizer
        self.vocab_size, self.context, self.layers = lm.vocab_size, lm.context, 1
        self.device, self.dtype, self.eos_ids = lm.device, lm.dtype, lm.eos_ids
        self.kv_heads, self.head_dim = module.attention.kv_heads, module.attention.head_dim
        self.parameters = sum(p.numel() for p in module.parameters())
        self.weight_bytes = sum(p.nbytes for p in module.parameters())

    def new_store(self) -> PlainStore:
        return PlainStore(1)

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
        rows = tokens if given else self._blank(tokens)
        scale = self.head_dim**-0.5

        def look(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            cache.stage(0, k[0], v[0])
            return attend(q, cache.segments(0), scale)

        places = torch.as_tensor(positions, device=self.device)
        cache.begin(positions, mask)
        try:
            features, states = self.module(rows[None], places, look)
        finally:
            cache.end()
        return Output(self.target.head(chosen(states[0], logits_at)), features[0] if "hidden" in want else None)

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        """[R] ids -> their rows [R, n], the features unknown."""
        return self._blank(tokens)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.target.head(hidden)

    def forward_flops(self, rows: int, context: int) -> int:
        """Of the part and of the target's head."""
        attention = 4 * self.module.attention.heads * self.head_dim * context
        width = self.module.attention.out.out_features
        return rows * (2 * self.parameters + 2 * width * self.vocab_size + attention)

    def kv_bytes(self) -> int:
        return 2 * self.kv_heads * self.head_dim * self.dtype.itemsize

    def describe(self) -> dict[str, Any]:
        shapes = {n: (*p.shape, str(p.dtype)) for n, p in self.module.named_parameters()}
        return facts(self, type(self.module).__name__, shapes, self._digest.of(self.module))
