"""What is measured: the operations of `workbench_kernels.selftest` on real shapes, and their baselines.

To add a kernel, give its operation a row of that table and its shapes a row of `SHAPES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from workbench_kernels.pages import RAW
from workbench_kernels.segment_attention import words_mask
from workbench_kernels.selftest import MIXED, OPERATIONS, Call

HEADS = {"kv_heads": 8, "group": 4, "size": 128}
KINDS = {"16": ((RAW, RAW),), "8": ((8, 8),), "4": ((4, 4),), "2": ((2, 2),), "mixed": MIXED}
LOGITS = ("statistics", "sample", "verify")
BACKENDS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")
SDPA = {f"sdpa {name.partition('_')[0].lower()}": getattr(SDPBackend, name) for name in BACKENDS}


@dataclass(frozen=True)
class Case:
    """An operation on one shape; `label` says it in words, `shape` as the operation takes it."""

    operation: str
    label: str
    shape: dict[str, Any]

    @property
    def dtype(self) -> torch.dtype:
        """Logits come in float32, keys and values in bfloat16."""
        return torch.float32 if self.operation.startswith(LOGITS) else torch.bfloat16

    @property
    def work(self) -> tuple[int, int]:
        return OPERATIONS[self.operation].floor(self.dtype, **self.shape)

    def prepare(self, device: str) -> Call:
        return OPERATIONS[self.operation](device, self.dtype, **self.shape)


# -- shapes -------------------------------------------------------------------------------------------------------


def _each(fixed: dict[str, Any], **columns: tuple) -> list[tuple[str, dict]]:
    """Every value of the first column with every value of the next, and so on; what is fixed is not in the label."""
    rows = [dict(zip(columns, values, strict=True)) for values in product(*columns.values())]
    return [(" ".join(f"{name}={value}" for name, value in row.items()), row | fixed) for row in rows]


def _pages() -> list[tuple[str, dict]]:
    return [
        (f"R={rows} n={context} kind={kind}", {"rows": rows, "count": context // 32, "widths": widths} | HEADS)
        for context in (8192, 1024, 32768) for rows in (1, 16, 4) for kind, widths in KINDS.items()
    ]  # fmt: skip


# the first shape of each is what --quick takes
VOCABULARIES = {"vocab": (131_072, 32_768, 262_144), "rows": (1, 16)}
PLAIN = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}
FILTERED = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": None}
CODED = [(f"pages={n} width={b}", {"count": n, "widths": (b, b), "size": 128}) for n in (2048, 256) for b in (4, 8, 2)]
WHOLE = _each({"size": 128}, count=(2048, 256))
SHAPES: dict[str, list[tuple[str, dict]]] = {
    "attend_pages": _pages(),
    "attend_staged": _each(HEADS, rows=(64, 8)),
    "attend_prefix": _each(HEADS, keys=(8192, 1024, 32768), sequences=(16, 4), rows=(1, 4)),
    "attend_live": _each({"capacity": 32768} | HEADS, keys=(8192, 1024, 32000), rows=(1, 8)),
    "merge": _each({"heads": 32, "size": 128}, segments=(4, 32), rows=(16, 1)),
    "page_mass": _pages(),
    "segment_mass": _each(HEADS, keys=(1024, 8192), rows=(16, 1)),
    "pages.pack": CODED,
    "pages.unpack": CODED,
    "pages.demote": WHOLE,
    "pages.gather": CODED,
    "pages.evict": WHOLE,
    "pages.rotate": _each({"kv_heads": 8, "size": 128}, keys=(8192, 32768)),
    "statistics": _each({}, **VOCABULARIES),
    "sample": [
        (f"{label} {name}", shape | rules)
        for label, shape in _each({}, **VOCABULARIES)
        for name, rules in (("top-k top-p", FILTERED), ("plain", PLAIN))
    ],
    "verify": _each({}, nodes=(64, 8), vocab=(131_072,)),
}


def cases(quick: bool = False) -> list[Case]:
    """All of them, or one of each operation (three kinds of pages)."""
    found = [Case(name, label, shape) for name, rows in SHAPES.items() for label, shape in rows]
    if not quick:
        return found
    kept = {name: [label for label, _ in rows[:1]] for name, rows in SHAPES.items()}
    kept["attend_pages"] = [f"R=1 n=8192 kind={kind}" for kind in ("16", "4", "mixed")]
    return [case for case in found if case.label in kept[case.operation]]


# -- baselines ----------------------------------------------------------------------------------------------------


def baselines(case: Case, call: Call) -> dict[str, Callable[[], Any]]:
    """What else gives the result, or its main part: the reference as it is and compiled, SDPA, torch sampling."""
    compiled = torch.compile(lambda: call.run("torch"), dynamic=False)
    found = {"reference": lambda: call.run("torch"), "compiled reference": compiled} | eager(case, call)
    if "torch sampling" in found:
        found["compiled torch sampling"] = torch.compile(found["torch sampling"], dynamic=False)
    return found


def eager(case: Case, call: Call) -> dict[str, Callable[[], Any]]:
    """Those that PyTorch has ready."""
    t = call.tensors
    if case.operation in ("attend_pages", "attend_prefix"):
        return _sdpa(t["q"], t["k"], t["v"])
    if case.operation == "attend_staged":
        return _sdpa(t["q"], t["k"], t["v"], words_mask(t["words"], t["k"].shape[1]))
    if case.operation == "attend_live":
        return _sdpa(t["q"], t["live_k"], t["live_v"], t["mask"])
    return {"torch sampling": _sampling(t["logits"], case.shape)} if case.operation == "sample" else {}


def _sdpa(q, k, v, mask=None) -> dict[str, Callable[[], Any]]:
    """PyTorch's attention over dense keys and values, by each of its backends."""

    def run(backend: SDPBackend) -> tuple[torch.Tensor]:
        with sdpa_kernel(backend):
            wide = (q.transpose(0, 1)[None], k[None], v[None])
            return (F.scaled_dot_product_attention(*wide, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1),)

    return {name: lambda backend=backend: run(backend) for name, backend in SDPA.items()}


def _sampling(logits: torch.Tensor, rules: dict) -> Callable[[], torch.Tensor]:
    """A draw as `generate` makes it."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    steps = [TemperatureLogitsWarper(rules["temperature"])] if rules["temperature"] != 1 else []
    steps += [TopKLogitsWarper(rules["top_k"])] if rules["top_k"] else []
    steps += [TopPLogitsWarper(rules["top_p"])] if rules["top_p"] else []

    def run() -> torch.Tensor:
        left = logits
        for step in steps:
            left = step(None, left)
        return torch.multinomial(left.softmax(-1), 1)[:, 0]

    return run
