"""What tests of segment attention share: mixed pages in an arena, their attention in float64, broken kernels."""

import importlib
import itertools
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from tests.kernels.checks import assert_close
from workbench_kernels import segment_attention
from workbench_kernels.pages.layout import BITS, PageFormat
from workbench_kernels.pages.reference import pack, unpack

# float32 inside whatever comes in; on a GPU 16-bit queries go with tf32 products: keys, probabilities and values are
# rounded to 11 bits
EXACT, TF32 = 2e-5, 4e-3
WIDTHS = list(itertools.product(BITS, BITS))  # keys x values


@dataclass
class Paged:
    """Pages in an arena among bytes of 0xFF (NaN in every float dtype), and what they hold, in float64."""

    q: torch.Tensor
    arena: torch.Tensor
    table: torch.Tensor
    count: torch.Tensor
    k: torch.Tensor  # [Hk, P * page, D]
    v: torch.Tensor
    slots: torch.Tensor  # [Hk, P * page] positions
    live: torch.Tensor
    options: dict

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5

    def call(self, function, *arguments, **options):
        pages = (self.q, self.arena, self.table, self.count, self.scale)
        return function(*pages, *arguments, **(self.options | options))

    def to(self, device: str) -> "Paged":
        moved = {n: t.to(device) if isinstance(t, torch.Tensor) else t for n, t in vars(self).items()}
        moved["options"] = {n: t.to(device) if isinstance(t, torch.Tensor) else t for n, t in self.options.items()}
        return Paged(**moved)


def paged(
    rows=3,
    group=2,
    size=32,
    dtype=torch.float32,
    raw=torch.float32,
    page=32,
    counts=(3, 2),
    widths=None,
    value_size=None,
    full=False,
) -> Paged:
    """Every page of another width, in shuffled order, with dead slots; table entries behind a count lead nowhere."""
    draw = torch.Generator().manual_seed(rows * 1000 + group * 100 + size + len(counts) + max(counts))
    shuffle = random.Random(size + rows)
    value_size = value_size or size
    value_group = 16 if value_size % 32 else 32
    pages = max(counts)
    table = torch.full((len(counts), pages), 2**30, dtype=torch.int32)
    k, v = (torch.zeros(len(counts), pages * page, d, dtype=torch.float64) for d in (size, value_size))
    slots = torch.zeros(len(counts), pages * page, dtype=torch.int64)
    live = torch.zeros(len(counts), pages * page, dtype=torch.bool)
    places = [(h, p) for h, held in enumerate(counts) for p in range(held)]
    shuffle.shuffle(places)
    widths = widths or shuffle.sample(WIDTHS, len(WIDTHS))
    pieces, at = [torch.full((64,), 255, dtype=torch.uint8)], 4
    for number, (h, p) in enumerate(places):
        form = PageFormat(size, value_size, *widths[number % len(widths)], value_group, raw, page)
        keys = torch.randn(1, page, size, generator=draw) * 2
        values = torch.randn(1, page, value_size, generator=draw) + 0.5
        positions = torch.randperm(page, generator=draw)[None] + p * page
        row = pack(keys, values, positions, torch.tensor([page if full or number % 3 else page - 19]), form)
        if not full:
            row[0, number % (page // 8)] &= 0b10110101  # slots evicted later
        pieces += [row[0], torch.full((16 * (number % 3 + 1),), 255, dtype=torch.uint8)]
        table[h, p] = at
        at += (len(pieces[-2]) + len(pieces[-1])) // 16
        span = slice(p * page, (p + 1) * page)
        unpacked = unpack(row, form)
        for whole, part in zip((k, v, slots, live), unpacked, strict=True):
            whole[h, span] = part[0].to(whole.dtype)
    q = torch.randn(rows, len(counts) * group, size, generator=draw).to(dtype)
    options = {"value_dim": value_size, "group": value_group, "raw": raw, "slots": page}
    return Paged(q, torch.cat(pieces), table, torch.tensor(counts, dtype=torch.int32), k, v, slots, live, options)


def expected(case: Paged, bias=None, positions=None, window=None):
    """Row by row and head by head, in float64: out [R, H, Dv], lse [R, H] and the scores [R, H, n], -inf if unseen."""
    rows, heads, _ = case.q.shape
    out = torch.zeros(rows, heads, case.v.shape[2], dtype=torch.float64)
    scores = torch.full((rows, heads, case.k.shape[1]), -torch.inf, dtype=torch.float64)
    for r, h in itertools.product(range(rows), range(heads)):
        g = h // (heads // len(case.k))
        seen = case.live[g].clone()
        if window is not None:
            seen &= positions[r] - case.slots[g] < window
        found = case.k[g] @ case.q[r, h].double() * case.scale + (0 if bias is None else bias[g])
        scores[r, h, seen] = found[seen]
        if seen.any():
            out[r, h] = found[seen].softmax(0) @ case.v[g, seen]
    return out, scores.logsumexp(-1), scores


def tolerance(case: Paged, device: str) -> float:
    return TF32 if device == "cuda" and case.q.dtype != torch.float32 else EXACT


def compare(got, want, within: float) -> None:
    for name, left, right in zip(("out", "lse"), got, want, strict=False):
        assert_close(name, left, right, within)


def with_options(pages: Paged) -> tuple[dict, dict]:
    """A bias by page number and a window: the options of a call, and what they mean for `expected`."""
    draw = torch.Generator().manual_seed(5)
    heads, columns = pages.table.shape
    side = torch.randn(heads * columns + 2, pages.options["slots"], generator=draw)
    numbers = torch.randperm(heads * columns, generator=draw).int().view(heads, columns)
    positions = torch.tensor([100, 40, 70], dtype=torch.int32)
    meaning = {"bias": side[numbers.long()].flatten(1).double(), "positions": positions, "window": 45}
    numbers = numbers.masked_fill(torch.arange(columns) >= pages.count[:, None], 2**30)
    return meaning | {"bias": side, "numbers": numbers}, meaning


def dense(q, k, v, scale, mask=None, bias=None):
    """Row by row, head by head, in float64: the formula as it is written in books."""
    rows, heads, _ = q.shape
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros(rows, heads, v.shape[2], dtype=torch.float64)
    lse = torch.full((rows, heads), -torch.inf, dtype=torch.float64)
    for r in range(rows):
        for h in range(heads):
            g = h // (heads // k.shape[0])
            scores = k[g] @ q[r, h] * scale + (0 if bias is None else bias.double().expand(k.shape[:2])[g])
            seen = torch.ones(k.shape[1], dtype=torch.bool) if mask is None else mask[r]
            if seen.any():
                lse[r, h] = scores[seen].logsumexp(0)
                out[r, h] = scores[seen].softmax(0) @ v[g][seen]
    return out, lse


def broken(tmp_path, monkeypatch, file: str, right: str, wrong: str) -> SimpleNamespace:
    """The kernel modules, compiled from a copy of their source in which `right` reads `wrong` in one file."""
    package = f"broken_{tmp_path.name.replace('-', '_')}"
    shutil.copytree(Path(segment_attention.__file__).parent, tmp_path / package)
    for path in (tmp_path / package).glob("*.py"):
        text = path.read_text().replace("workbench_kernels.segment_attention", package)
        if path.name == file:
            assert right in text, f"{file} no longer reads {right!r}"
            text = text.replace(right, wrong)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return modules(package)


def modules(package: str = "workbench_kernels.segment_attention") -> SimpleNamespace:
    """The modules of kernels, which import Triton."""
    parts = ("dense", "merging", "paged", "scores", "tiles")
    return SimpleNamespace(**{part: importlib.import_module(f"{package}.{part}") for part in parts})
