"""KIVI: keys in steps per channel, values in steps per token."""

from collections.abc import Mapping
from dataclasses import dataclass

from workbench.cache.codecs.base import Quantizer
from workbench.declare import register, setting
from workbench.errors import BadInput
from workbench.values import bounded
from workbench_kernels.pages import BITS, PAGE_SIZES


@register("quantizer", "kivi")
@dataclass(frozen=True)
class KIVI(Quantizer):
    """Keys in steps per channel of a page, values in steps per token and `group` channels.

    The newest `residual` tokens stay as they are; older ones are quantized page by page. `layers` gives single layers
    another width: a list (first layer first) or a mapping {layer: bits}; -1 in a list takes the common width.

    `raw_keys` as in "KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache Quantization"
    (https://arxiv.org/abs/2401.18079; https://github.com/SqueezeAILab/KVQuant).

    Source: "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache" (https://arxiv.org/abs/2402.02750;
    https://github.com/jy-yuan/KIVI). Departures: 8-bit steps are stored for every width and nested (4 bits: 17 of them,
    2 bits: 85), so that a page can be narrowed later without its originals; keys and values leave the residual window
    together, by pages; a prompt is quantized as it goes in.
    """

    bits: int = setting(4, ge=0, le=16, unit="bits", help="2, 4, 8, 16 (half precision) or 0 (the model's own dtype)")
    bits_k: int | None = setting(None, ge=0, le=16, unit="bits", help="width of keys, if not `bits`")
    bits_v: int | None = setting(None, ge=0, le=16, unit="bits", help="width of values, if not `bits`")
    residual: int = setting(32, ge=0, le=4096, unit="tokens", help="newest tokens left as they are; whole pages")
    page_size: int = setting(32, choices=PAGE_SIZES, unit="tokens", help="of a page")
    group: int = setting(32, ge=1, le=1024, unit="channels", help="channels of a value that share a step")
    raw_keys: bool = setting(False, help="quantize keys as they are before their rotary embedding, as KVQuant does")
    layers: tuple[int, ...] | None = setting(None, help="widths of single layers, first to last; -1: the common one")
    on_device: int | None = setting(None, ge=0, unit="tokens", help="pages of older tokens lie in the tier below")

    in_pages = ("residual",)

    def __post_init__(self) -> None:
        if isinstance(self.layers, Mapping):
            widths = {bounded("KIVI(layers=…)", key, 0, 4095, "layers"): bits for key, bits in self.layers.items()}
            last = max(widths, default=-1)
            object.__setattr__(self, "layers", tuple(widths.get(layer, -1) for layer in range(last + 1)))
        super().__post_init__()
        known = ", ".join(map(str, sorted(BITS)))
        for name in ("bits", "bits_k", "bits_v"):
            if getattr(self, name) not in (*BITS, *([None] if name != "bits" else [])):
                raise BadInput(f"KIVI({name}=…): expected one of {known}, got {getattr(self, name)}")
        for layer, bits in enumerate(self.layers or ()):
            if bits not in (-1, *BITS):
                raise BadInput(f"KIVI(layers=…): expected widths of {known}, got {bits} for layer {layer}")

    def widths(self, layer: int) -> tuple[int, int]:
        own = self.layers[layer] if self.layers and layer < len(self.layers) else -1
        if own >= 0:
            return own, own
        return tuple(self.bits if bits is None else bits for bits in (self.bits_k, self.bits_v))
