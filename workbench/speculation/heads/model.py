"""Trained parts with keys and values of their own as a `LanguageModel`, so that they can be a runner of a decoder."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from workbench.engine.attention import attend
from workbench.engine.model import ForwardRequest, LanguageModel, Output, facts
from workbench.models.digest import Digest


class HeadModel(LanguageModel):
    """Attention layers over rows of features, each with the target's head behind it.

    module: what holds the weights. parts: its layers by name, `part(rows [1, R, n], positions [R], attend)` -> states
    for the head [1, R, width], or (features that come next, those states), with `heads`, `kv_heads` and `head_dim` in
    `part.attention`. blank(ids): the rows [R, n] of tokens whose features nobody knows, which a forward of ids reads.
    """

    def __init__(
        self,
        name: str,
        lm: LanguageModel,
        module: nn.Module,
        parts: Mapping[Any, nn.Module],
        blank: Callable[[Sequence[int]], torch.Tensor] | None = None,
    ):
        self.target, self.module, self.blank, self._digest = lm, module, blank, Digest(module)
        self.gives = frozenset({"hidden" if blank else "layers"})
        self.parts, self.attention = dict(parts), next(iter(parts.values())).attention
        self.name, self.key = name, ("part", lm.key, name, id(module), *self.parts)
        self.tokenizer, self.eos_ids = lm.tokenizer, lm.eos_ids
        self.vocab_size, self.context, self.layers = lm.vocab_size, lm.context, len(self.parts)
        self.device, self.dtype = lm.device, lm.dtype
        self.kv_heads, self.head_dim = self.attention.kv_heads, self.attention.head_dim
        self._weights = {f"{key}.{n}": p for key, part in self.parts.items() for n, p in part.named_parameters()}
        self.parameters = sum(p.numel() for p in self._weights.values())
        self.weight_bytes = sum(p.nbytes for p in self._weights.values())

    def _forward(self, request: ForwardRequest) -> Output:
        """Its tokens are rows of features [R, n], and hidden are the features that come next; its layers name one of
        several. `logits_at=()` spares the head."""
        cache, positions = request.cache, list(request.positions)
        (layer,) = range(self.layers) if request.layers is None else request.layers
        rows = request.tokens if request.embedded else self.embed(request.tokens)

        def look(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            cache.stage(layer, k[0], v[0])
            return attend(q, cache.segments(layer), self.head_dim**-0.5)

        places = torch.as_tensor(positions, device=self.device)
        cache.begin(positions, request.mask, (layer,))
        try:
            found = list(self.parts.values())[layer](rows[None], places, look)
        finally:
            cache.end()
        features, states = found if isinstance(found, tuple) else (found, found)
        hidden = features[0] if "hidden" in request.want else None
        return Output(self.target.head(request.chosen(states[0])), hidden)

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        """[R] ids -> their rows [R, n], the features unknown."""
        return self.blank(tokens) if self.blank else super().embed(tokens)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.target.head(hidden)

    def forward_flops(self, rows: int, context: int) -> int:
        """Multiply-adds counted twice: of all layers, their attention, and the target's head for each."""
        scores = 4 * self.attention.heads * self.head_dim * context
        head = 2 * self.attention.out.out_features * self.vocab_size
        return rows * (2 * self.parameters + self.layers * (head + scores))

    def describe(self) -> dict[str, Any]:
        """The facts that a trace records."""
        shapes = {name: (*p.shape, str(p.dtype)) for name, p in self._weights.items()}
        return facts(self, type(self.module).__name__, shapes, self._digest.of(self.module))
