"""A trained linear head on the model's hidden states."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from workbench.control.scorers.base import Scorer
from workbench.declare import register, setting
from workbench.engine.model import LanguageModel, kept, require
from workbench.engine.settings import Settings
from workbench.errors import BadInput


@register("scorer", "linear_head")
@dataclass(frozen=True)
class LinearHead(Scorer):
    """w · h + b of the final hidden state h behind a hypothesis's last token, such as a reward model's head gives.

    `weights` names a safetensors file with the tensors `weight` [width] (or [1, width]) and, where there is one, `bias`
    [1]. The state takes a forward of the tokens that a hypothesis has not read, of phase `score`, which is dropped.
    Source: the value head of "Learning to summarize from human feedback" (https://arxiv.org/abs/2009.01325;
    https://github.com/openai/summarize-from-feedback). Departure: the model is the one that writes, as it is.
    """

    weights: str = setting("", trust="owner", help="a safetensors file of the head")

    def check(self, lm: LanguageModel, settings: Settings) -> None:
        require(lm, "linear_head", {"hidden"})
        self._head(lm)

    def score(self, r: Any, hypotheses: Sequence[Any]) -> list[float]:
        weight, bias = self._head(r.state.runners["target"].model)
        return [(self._state(r, one) @ weight + bias).item() for one in hypotheses]

    def _state(self, r: Any, hypothesis: Any) -> torch.Tensor:
        """[width] behind the last token; its keys are not kept."""
        r, store = copy(r), hypothesis.state.runners["target"].store
        r.state, r.observer = hypothesis.state, None
        r.approach("target")
        tokens, start = r.state.tokens_of("target"), store.length
        asked = {"logits_at": (), "phase": "score", "want": ("hidden",)}
        hidden = r.forward("target", tokens[start:], range(start, len(tokens)), **asked).hidden[-1]
        store.discard()
        return hidden.double()

    def _head(self, lm: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
        file = Path(self.weights).expanduser()
        try:
            made = file.stat().st_mtime_ns if file.is_file() else None
        except (OSError, ValueError):
            made = None
        return kept(lm, ("linear_head", self.weights, made), lambda: self._load(file, lm))

    def _load(self, file: Path, lm: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
        width = lm.embed([0]).shape[-1]
        wanted = f"expected a safetensors file with weight [{width}]"
        try:
            with safe_open(file, "pt") as opened:
                weight = opened.get_tensor("weight").double().reshape(-1)
                bias = opened.get_tensor("bias").double().reshape(-1) if "bias" in opened.keys() else torch.zeros(1)  # noqa: SIM118
        except (OSError, ValueError, SafetensorError):
            raise BadInput(f"linear_head: weights={self.weights!r}: {wanted}, got none") from None
        if len(weight) != width or len(bias) != 1:
            got = f"weight [{len(weight)}] and bias [{len(bias)}]"
            raise BadInput(f"linear_head: weights={self.weights!r}: {wanted}, got {got}")
        return weight.to(lm.device), bias.double().to(lm.device)
