"""A model's forward pass over tensors alone: ids, positions and lengths on the device, so that it can be captured.

A second shallow copy of the model (the same weights) attends through `LiveRows` instead of a store's segments.
"""

import threading

import torch
from transformers import AttentionInterface

from workbench.device.fusion import fuse
from workbench.device.store import LiveRows
from workbench.engine.model import kept
from workbench.engine.structure import routed
from workbench.models.adapter import TransformersModel, _Cache

IMPLEMENTATION = "workbench_device"
_KEY = ("device",)


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None, **kwargs):
    """transformers' attention interface: query [1, H, R, D] -> ([1, R, H, D], no weights)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return key.cache.store.attend(key.layer, query, scale), None


AttentionInterface.register(IMPLEMENTATION, _attention)


class DeviceModel:
    """`of(lm)` gives the one of a `TransformersModel`; see `refuses` for what cannot be served."""

    def __init__(self, lm: TransformersModel):
        self._engine = routed(lm.model, IMPLEMENTATION)
        self.fused = fuse(self._engine) if lm.device.type == "cuda" else {}
        self._cache = _Cache(lm.layers)
        self.lock = threading.Lock()  # hold it around forwards, and around the capture of them
        self.device, self.vocab_size, self.ids_read = lm.device, lm.vocab_size, lm.ids_read

    @classmethod
    def of(cls, lm: TransformersModel) -> "DeviceModel":
        return kept(lm, _KEY, lambda: cls(lm))

    @staticmethod
    def refuses(lm: object) -> str | None:
        """Why a model's forward pass cannot run on the device alone, or None."""
        if not isinstance(lm, TransformersModel):
            return f"{type(lm).__name__} runs on the host"
        return kept(lm, (*_KEY, "refused"), lambda: _reason(lm))

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, rows: LiveRows, last: int = 0) -> torch.Tensor:
        """ids and absolute positions int64 [R] on the device -> logits of the `last` rows (0: of all)."""
        self._cache.store = rows
        try:
            options = {"past_key_values": self._cache, "use_cache": True, "logits_to_keep": last}
            return self._engine(input_ids=tokens[None], position_ids=positions[None], **options).logits[0]
        finally:
            self._cache.store = None


def _reason(lm: TransformersModel) -> str | None:
    if any(handle.window is not None and handle.window < lm.context for handle in lm._cache.layers):
        return "the model slides a window over its keys"
    if {p.device for p in lm.model.parameters()} != {lm.device}:
        return "the model's weights lie on several devices"
    rotary = getattr(lm.model.base_model, "rotary_emb", None)
    if "dynamic" in (kind := getattr(rotary, "rope_type", "")) or kind == "longrope":
        return f"the model's rotary embedding ({kind}) asks for the length on the host"
    return None
