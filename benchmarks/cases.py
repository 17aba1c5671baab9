"""What is measured: operations of `workbench.operations` on real shapes, the bytes they must move, their baselines.

To add a kernel, name its operation in `OPERATIONS`, its shapes in `SHAPES`, its work in `WORK`. Work counts every
input that must be read and every output that must be written once, and the multiplications and additions of matrix
products; what else is computed takes no time beside those.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from workbench.operations import MIXED, OPERATIONS, Call
from workbench_kernels.pages import RAW, SLOTS, PageFormat
from workbench_kernels.segment_attention import words_mask

__all__ = ["SHAPES", "Case", "baselines", "cases"]

HEADS = {"kv_heads": 8, "group": 4, "size": 128}
KINDS = {"16": ((RAW, RAW),), "8": ((8, 8),), "4": ((4, 4),), "2": ((2, 2),), "mixed": MIXED}
LAWS = ("statistics", "sample", "verify")
SDPA = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Case:
    """An operation on one shape; `label` says it in words, `shape` as the operation takes it."""

    operation: str
    label: str
    shape: dict[str, Any]

    @property
    def dtype(self) -> torch.dtype:
        """Logits come in float32, keys and values in bfloat16."""
        return torch.float32 if self.operation.startswith(LAWS) else torch.bfloat16

    @property
    def work(self) -> tuple[int, int]:
        """Bytes and floating-point operations."""
        return WORK[self.operation](self.dtype, **self.shape)

    def prepare(self, device: str) -> Call:
        return OPERATIONS[self.operation](device, self.dtype, **self.shape)


# -- shapes -------------------------------------------------------------------------------------------------------


def _pages() -> Iterator[tuple[str, dict]]:
    for context in (8192, 1024, 32768):
        for rows in (1, 16, 4):
            for kind, widths in KINDS.items():
                shape = {"rows": rows, "count": context // SLOTS, "widths": widths} | HEADS
                yield f"R={rows} n={context} kind={kind}", shape


def _each(**columns: tuple) -> list[tuple[str, dict]]:
    """Every value of the first column with every value of the next, and so on."""
    found: list[dict] = [{}]
    for name, values in columns.items():
        found = [row | {name: value} for row in found for value in values]
    return [(" ".join(f"{name}={value}" for name, value in row.items()), row) for row in found]


def _with(rows: list[tuple[str, dict]], **fixed) -> list[tuple[str, dict]]:
    return [(label, row | fixed) for label, row in rows]


# the first shape of each is what --quick takes
VOCABULARIES = {"vocab": (131_072, 32_768, 262_144), "rows": (1, 16)}
PLAIN = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}
FILTERED = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": None}
NAMED_WIDTHS = [(f"width={bits}", {"widths": (bits, bits)}) for bits in (4, 8, 2)]
SHAPES: dict[str, list[tuple[str, dict]]] = {
    "attend_pages": list(_pages()),
    "attend_staged": _with(_each(rows=(64, 8)), **HEADS),
    "attend_prefix": _with(_each(keys=(8192, 1024, 32768), sequences=(16, 4), rows=(1, 4)), **HEADS),
    "attend_live": _with(_each(keys=(8192, 1024, 32000), rows=(1, 8)), capacity=32768, **HEADS),
    "merge": _with(_each(segments=(4, 32), rows=(16, 1)), heads=32, size=128),
    "page_mass": list(_pages()),
    "segment_mass": _with(_each(keys=(1024, 8192), rows=(16, 1)), **HEADS),
    "pages.pack": [(f"pages={n} {w}", {"count": n, "size": 128} | s) for n in (2048, 256) for w, s in NAMED_WIDTHS],
    "pages.unpack": [(f"pages={n} {w}", {"count": n, "size": 128} | s) for n in (2048, 256) for w, s in NAMED_WIDTHS],
    "pages.demote": _with(_each(count=(2048, 256)), size=128),
    "pages.gather": [(f"pages={n} {w}", {"count": n, "size": 128} | s) for n in (2048, 256) for w, s in NAMED_WIDTHS],
    "pages.scatter": _with(_each(rows=(8, 1)), kv_heads=8, size=128),
    "pages.move": _with(_each(count=(2048, 256)), size=128),
    "pages.compact": _with(_each(count=(1024, 64)), size=128),
    "pages.merge": _with(_each(count=(2048, 256)), size=128),
    "pages.evict": _with(_each(count=(2048, 256)), size=128),
    "pages.rotate": _with(_each(keys=(8192, 32768)), kv_heads=8, size=128),
    "pages.rotate_pages": _with(_each(count=(2048, 256)), size=128),
    "statistics": _with(_each(**VOCABULARIES), k=8),
    "sample": [
        (f"{label} {name}", shape | rules)
        for label, shape in _each(**VOCABULARIES)
        for name, rules in (("top-k top-p", FILTERED), ("plain", PLAIN))
    ],
    "verify.greedy": _each(nodes=(64, 8), vocab=(131_072,)),
    "verify.keyed": _each(nodes=(64, 8), vocab=(131_072,)),
    "verify.rejection": _each(nodes=(64, 8), vocab=(131_072,)),
}


def cases(quick: bool = False) -> list[Case]:
    """All of them, or one of each operation (three kinds of pages)."""
    found = [Case(name, label, shape) for name, rows in SHAPES.items() for label, shape in rows]
    if not quick:
        return found
    kept = {name: [label for label, _ in rows[:1]] for name, rows in SHAPES.items()}
    kept["attend_pages"] = [f"R=1 n=8192 kind={kind}" for kind in ("16", "4", "mixed")]
    return [case for case in found if case.label in kept[case.operation]]


# -- work ---------------------------------------------------------------------------------------------------------


def _attention(item, rows, kv_heads, group, size, keys, extra=0) -> tuple[int, int]:
    """Dense keys and values."""
    heads = kv_heads * group
    return (
        rows * heads * (size * item + 4 * size + 4) + 2 * kv_heads * keys * size * item + extra,
        4 * rows * heads * keys * size,
    )


def _attend_pages(dtype, rows, kv_heads, group, size, count, widths) -> tuple[int, int]:
    """Positions are read under a window only."""
    heads, total = kv_heads * group, kv_heads * count
    held = sum(form.bytes - 4 * SLOTS for form in _forms(dtype, size, total, widths))
    return (
        rows * heads * (size * dtype.itemsize + 4 * size + 4) + held + 4 * (total + kv_heads),
        4 * rows * heads * count * SLOTS * size,
    )


def _page_mass(dtype, rows, kv_heads, group, size, count, widths) -> tuple[int, int]:
    """Header, key steps and key codes."""
    heads, total = kv_heads * group, kv_heads * count
    forms = _forms(dtype, size, total, widths)
    held = sum(form.positions + form.scale_v - form.scale_k + SLOTS * form.row_k for form in forms)
    return (
        rows * heads * (size * dtype.itemsize + 8) + held + 4 * (total + kv_heads) + 4 * total * SLOTS,
        2 * rows * heads * count * SLOTS * size,
    )


def _forms(dtype, size, total, widths) -> list[PageFormat]:
    forms = [PageFormat(size, size, *pair, dtype=dtype) for pair in widths]
    return [forms[i % len(forms)] for i in range(total)]


def _attend_staged(dtype, rows, kv_heads, group, size) -> tuple[int, int]:
    return _attention(dtype.itemsize, rows, kv_heads, group, size, rows, 4 * rows * -(-rows // 32))


def _attend_prefix(dtype, sequences, rows, kv_heads, group, size, keys) -> tuple[int, int]:
    return _attention(dtype.itemsize, sequences * rows, kv_heads, group, size, keys)


def _attend_live(dtype, rows, kv_heads, group, size, keys, capacity) -> tuple[int, int]:
    return _attention(dtype.itemsize, rows, kv_heads, group, size, keys + rows, 4 + 4 * rows * -(-rows // 32))


def _merge(dtype, segments, rows, heads, size) -> tuple[int, int]:
    return 4 * (segments + 1) * rows * heads * (size + 1), 2 * segments * rows * heads * size


def _segment_mass(dtype, rows, kv_heads, group, size, keys) -> tuple[int, int]:
    heads = kv_heads * group
    return (
        rows * heads * (size * dtype.itemsize + 8) + kv_heads * keys * (size * dtype.itemsize + 4),
        2 * rows * heads * keys * size,
    )


def _form(dtype, size, widths=(RAW, RAW)) -> PageFormat:
    return PageFormat(size, size, *widths, dtype=dtype)


def _page_pack(dtype, count, size, widths) -> tuple[int, int]:
    return count * (SLOTS * (2 * size * dtype.itemsize + 4) + 8 + _form(dtype, size, widths).bytes), 0


def _page_unpack(dtype, count, size, widths) -> tuple[int, int]:
    """To float32 rows, int64 positions and one byte of liveness a slot."""
    return count * (_form(dtype, size, widths).bytes + 4 + SLOTS * (8 * size + 9)), 0


def _page_demote(dtype, count, size) -> tuple[int, int]:
    return count * (_form(dtype, size, (8, 8)).bytes + _form(dtype, size, (4, 4)).bytes + 12), 0


def _page_gather(dtype, count, size, widths) -> tuple[int, int]:
    """As unpacking, by an offset and a number per slot."""
    return _page_unpack(dtype, count, size, widths)[0] + count * (12 * SLOTS - 4), 0


def _page_scatter(dtype, kv_heads, rows, size) -> tuple[int, int]:
    return kv_heads * rows * (4 * size * dtype.itemsize + 16) + 16 * rows + 32 * kv_heads, 0


def _page_move(dtype, count, size) -> tuple[int, int]:
    """Half of the slots, there and back: rows and positions read and written, four indices, live masks."""
    slot = 2 * (2 * size * dtype.itemsize + 4) + 24
    return 2 * count * (SLOTS // 2 * slot + 8), 0


def _page_compact(dtype, count, size) -> tuple[int, int]:
    return 2 * count * _form(dtype, size, (4, 4)).bytes + count * (12 * SLOTS + 5), 0


def _page_merge(dtype, count, size) -> tuple[int, int]:
    """A source and a target read, the target written, by four indices and two weights."""
    return count * (SLOTS // 4 * (6 * size * dtype.itemsize + 32) + 8), 0


def _page_evict(dtype, count, size) -> tuple[int, int]:
    return count * (SLOTS // 2 * 12 + 8), 0


def _page_rotate(dtype, kv_heads, keys, size) -> tuple[int, int]:
    return 2 * kv_heads * keys * size * dtype.itemsize + 16 * keys + 2 * size, 0


def _page_rotate_pages(dtype, count, size) -> tuple[int, int]:
    return count * (2 * _form(dtype, size).bytes + 4 * SLOTS + 8) + 2 * size, 0


def _statistics(dtype, rows, vocab, k) -> tuple[int, int]:
    return rows * (vocab * dtype.itemsize + 20 + 12 * k), 0


def _sample(dtype, rows, vocab, **_) -> tuple[int, int]:
    return rows * (vocab * dtype.itemsize + 64), 0


def _verify(dtype, nodes, vocab, rejection=False) -> tuple[int, int]:
    """The laws of all nodes, since nobody knows the path beforehand; under rejection the proposals too."""
    return nodes * (vocab * (dtype.itemsize + 4 * rejection) + 48), 0


WORK: dict[str, Callable[..., tuple[int, int]]] = {
    "attend_pages": _attend_pages,
    "attend_staged": _attend_staged,
    "attend_prefix": _attend_prefix,
    "attend_live": _attend_live,
    "merge": _merge,
    "page_mass": _page_mass,
    "segment_mass": _segment_mass,
    "pages.pack": _page_pack,
    "pages.unpack": _page_unpack,
    "pages.demote": _page_demote,
    "pages.gather": _page_gather,
    "pages.scatter": _page_scatter,
    "pages.move": _page_move,
    "pages.compact": _page_compact,
    "pages.merge": _page_merge,
    "pages.evict": _page_evict,
    "pages.rotate": _page_rotate,
    "pages.rotate_pages": _page_rotate_pages,
    "statistics": _statistics,
    "sample": _sample,
    "verify.greedy": _verify,
    "verify.keyed": _verify,
    "verify.rejection": lambda dtype, **shape: _verify(dtype, **shape, rejection=True),
}


# -- baselines ----------------------------------------------------------------------------------------------------


def baselines(case: Case, call: Call) -> dict[str, Callable[[], Any]]:
    """What else gives the result, or its main part: the reference as it is and compiled, SDPA, torch sampling."""
    compiled = torch.compile(lambda: call.run("torch"), dynamic=False)
    found: dict[str, Callable[[], Any]] = {"reference": lambda: call.run("torch"), "compiled reference": compiled}
    t = call.tensors
    if case.operation in ("attend_pages", "attend_prefix"):
        found |= _sdpa(t["q"], t["k"], t["v"])
    elif case.operation == "attend_staged":
        found |= _sdpa(t["q"], t["k"], t["v"], words_mask(t["words"], t["k"].shape[1]))
    elif case.operation == "attend_live":
        found |= _sdpa(t["q"], t["live_k"], t["live_v"], t["mask"])
    elif case.operation == "sample":
        draw = _sampling(t["logits"], case.shape)
        found |= {"torch sampling": draw, "compiled torch sampling": torch.compile(draw, dynamic=False)}
    return found


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
