"""Pages without quantization."""

from dataclasses import dataclass

from workbench.cache.codecs.base import Quantizer
from workbench.declare import register, setting
from workbench_kernels.pages import PAGE_SIZES, RAW


@register("quantizer", "paged")
@dataclass(frozen=True)
class Paged(Quantizer):
    """Pages in the model's own dtype: what paging alone costs and changes, to compare quantizers with.

    Paging as in "Efficient Memory Management for Large Language Model Serving with PagedAttention"
    (https://arxiv.org/abs/2309.06180; https://github.com/vllm-project/vllm).
    """

    residual: int = setting(32, ge=0, le=4096, unit="tokens", help="newest tokens left in one run; whole pages")
    page_size: int = setting(32, choices=PAGE_SIZES, unit="tokens", help="of a page")
    on_device: int | None = setting(None, ge=0, unit="tokens", help="pages of older tokens lie in the tier below")

    in_pages = ("residual",)

    def widths(self, layer: int) -> tuple[int, int]:
        return RAW, RAW
