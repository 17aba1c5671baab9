"""Codecs: what is packed comes back within the bound, every byte is in the ledger, raw keys turn there and back."""

from dataclasses import dataclass

import pytest
import torch

import workbench as wb
from tests.cache.conftest import PROMPT, build, feed
from workbench.cache import as_stack
from workbench.cache.codec import Affine, Codec
from workbench.cache.codecs.base import Quantizer
from workbench.cache.rotation import Rotation
from workbench.errors import NumericalError
from workbench.models.adapter import wrap
from workbench.trace.schema import CACHE_KINDS
from workbench_kernels.pages import GAINS, PageFormat, unpack
from workbench_kernels.pages.reference import scales_at

FREQUENCIES = tuple((10_000.0 ** -(torch.arange(8) / 8)).tolist())
CODECS = [
    Affine(PageFormat(32, 16, bits_k, bits_v, 16, slots=slots), frequencies)
    for bits_k, bits_v, slots in ((8, 4, 32), (4, 2, 64), (2, 16, 32), (16, 0, 64), (0, 8, 32))
    for frequencies in ((None, FREQUENCIES) if bits_k in GAINS else (None,))
]


def given(codec: Affine, seed: int) -> tuple[torch.Tensor, ...]:
    """k, v, positions and used slots of five pages, the last of them nearly empty."""
    draw, slots = torch.Generator().manual_seed(seed), codec.slots
    k, v = (torch.randn(5, slots, size, generator=draw) * 10.0 ** torch.randint(-3, 3, (), generator=draw)
            for size in (32, 16))  # fmt: skip
    positions = torch.randint(0, 100_000, (5, slots), generator=draw)
    return k, v, positions, torch.tensor([slots, slots - 1, slots // 2, slots, 1])


def bound_of(codec: Affine, rows: torch.Tensor) -> list[torch.Tensor]:
    """What packing may have changed at most: half a step, or half a unit of float16; turning mixes the errors of a
    pair of channels."""
    form, half, found = codec.form, torch.finfo(torch.float16), []
    for x, bits, start, count, group in zip(
        unpack(rows, form)[:2], (form.bits_k, form.bits_v), (form.scale_k, form.scale_v),
        (form.head_dim, form.slots * form.value_dim // form.group), (None, form.group), strict=True,
    ):  # fmt: skip
        if bits in GAINS:
            step = scales_at(rows, start, count)[0] * GAINS[bits] / 2
            spread = step.view(len(rows), form.slots, -1).repeat_interleave(group, -1) if group else step[:, None]
            found.append(spread.expand(x.shape))
        else:
            found.append(x.abs().clamp_min(half.tiny) * half.eps / 2 if bits == 16 else torch.zeros_like(x))
    if codec.raw_keys:
        pairs = len(codec.frequencies)
        x, y, rest = found[0].split([pairs, pairs, found[0].shape[2] - 2 * pairs], -1)
        found[0] = torch.cat([torch.hypot(x, y), torch.hypot(x, y), rest], -1)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_what_is_packed_comes_back_within_the_bound(codec, seed):
    k, v, positions, used = given(codec, seed)
    rows = codec.pack(k, v, positions, used)
    assert rows.shape == (5, codec.bytes) and rows.dtype == torch.uint8
    back_k, back_v, where, live = codec.unpack(rows)
    assert torch.equal(live, torch.arange(codec.slots) < used[:, None]) and torch.equal(where, positions)
    for x, y, bound in zip((k, v), (back_k, back_v), bound_of(codec, rows), strict=True):
        assert bound.shape == x.shape
        slack = 2e-6 * x[live].abs().max()  # of float32 sums, and of turning
        gap = ((x - y).abs() - bound)[live]
        assert gap.max() <= slack
        if bound.any():  # one that no value comes near would bound nothing
            assert ((x - y).abs() / bound.clamp_min(1e-30))[live].max() > 0.5


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_every_byte_is_in_the_ledger(codec):
    for live, used in ((codec.slots, codec.slots), (3, 3), (3, codec.slots), (0, 1)):
        kinds = codec.ledger(live, used)
        assert sum(kinds.values()) == codec.bytes and min(kinds.values()) >= 0


def test_raw_keys_are_what_lies_in_the_page():
    """Keys baked anywhere are stored as at position 0, and come back with an error of float32's last bits."""
    form, draw = PageFormat(16, 16, 8, 0, 16), torch.Generator().manual_seed(1)
    codec, k = Affine(form, FREQUENCIES), torch.randn(1, 32, 16, generator=draw)
    positions = torch.randint(0, 8000, (1, 32), generator=draw)
    turn = Rotation(torch.tensor(FREQUENCIES)).rotation
    baked = torch.stack([turn(k[0, i], int(at)) for i, at in enumerate(positions[0])])[None]
    rows = codec.pack(baked, k, positions, torch.tensor([32]))
    within = bound_of(codec, rows)[0].max() + 1e-3 * k.abs().max()  # half a step; angles in float32
    assert codec.kernel is None and Affine(form).kernel == form
    assert (unpack(rows, form)[0] - k).abs().max() < within < (baked - k).abs().max()
    assert (codec.unpack(rows)[0] - baked).abs().max() < within
    turned = codec._turned(codec._turned(baked, positions, 0 * positions), 0 * positions, positions)
    assert 0 < (turned - baked).abs().max() < 5e-7 * k.abs().max()
    with pytest.raises(ValueError, match="keys of 8, 4 or 2 bits only"):
        Affine(PageFormat(16, 16, 0, 0, 16), FREQUENCIES)


def test_what_a_codec_cannot_hold_is_one_line():
    k, v, positions, used = given(CODECS[0], 0)
    k[0, 0, 0] = torch.inf
    with pytest.raises(NumericalError, match="expected finite values within"):
        CODECS[0].pack(k, v, positions, used)


def test_raw_keys_on_a_model():
    """In the model's own dtype nothing changes; in two bits something else than without does."""
    lm = wrap(build())
    text, found = (PROMPT * 3)[:130], {}
    for bits in (0, 2):
        for raw in (False, True):
            store = as_stack(wb.KIVI(bits=bits, residual=0, raw_keys=raw)).new_store(lm, 50)
            found[bits, raw] = feed(lm, store, text)
    scale = found[0, False].abs().max()
    assert torch.equal(found[0, True], found[0, False])
    assert (found[2, True] - found[2, False]).abs().max() > 1e-3 * scale


@dataclass(frozen=True)
class Plain(Codec):
    """Keys and values as they are, float32, values first."""

    size: int
    slots: int = 32
    bits = (32, 32)
    rounds = False
    extra: int = 0

    @property
    def bytes(self):
        return 16 + 4 * self.slots + 8 * self.slots * self.size + self.extra

    def pack(self, k, v, positions, used):
        rows = torch.zeros(len(k), self.bytes, dtype=torch.uint8)
        live = torch.arange(self.slots) < used[:, None]
        rows[:, : self.slots // 8] = (live.unflatten(-1, (-1, 8)) * (1 << torch.arange(8))).sum(-1).to(torch.uint8)
        parts = [positions.int(), v.float().flatten(1), k.float().flatten(1)]
        rows[:, 16 : self.bytes - self.extra] = torch.cat([x.contiguous().view(torch.uint8) for x in parts], 1)
        return rows

    def unpack(self, rows):
        n, start = len(rows), 16 + 4 * self.slots
        both = rows[:, start : self.bytes - self.extra].contiguous().view(torch.float32).view(n, 2, self.slots, -1)
        live = (rows[:, : self.slots // 8, None] >> torch.arange(8) & 1).bool().flatten(1)
        return both[:, 1], both[:, 0], rows[:, 16:start].contiguous().view(torch.int32).long(), live

    def ledger(self, live, used):
        slot = 4 + 8 * self.size
        return {"payload": live * 8 * self.size, "position": 4 * live, "header": 16, "dead": (used - live) * slot,
                "pad": (self.slots - used) * slot + self.extra}  # fmt: skip


@dataclass(frozen=True)
class Own(Quantizer):
    extra: int = 0
    residual, on_device = 32, None
    declared_name = "test-plain"

    def codecs(self, layer, head_dim, value_dim, dtype, rotation=None):
        return [Plain(head_dim, extra=self.extra)]


def test_a_codec_of_ones_own():
    """Under a policy that evicts and repacks: what `Paged` gives, to the last bit, and every byte in the ledger."""
    lm, text = wrap(build()), (PROMPT * 4)[:190]
    policy = wb.H2O(budget=64, recent=32)
    ours, paged = (wb.Stack(policy, each).new_store(lm, 50) for each in (Own(), wb.Paged()))
    assert torch.equal(feed(lm, ours, text), feed(lm, paged, text))
    kinds = [sum(sum(column) for name, column in store.ledger().items() if name in CACHE_KINDS)
             for store in (ours, paged)]  # fmt: skip
    assert kinds[0] == kinds[1] > 0
    with pytest.raises(wb.BadInput, match=r"codecs\(\) answered pages of 32 slots and .* multiple of 16 bytes"):
        wb.Stack(policy, Own(extra=4)).new_store(lm, 50)


def test_raw_keys_need_keys_that_turn():
    from transformers import GPT2Config, GPT2LMHeadModel

    lm = wrap(GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=64, n_embd=32, n_layer=1, n_head=2)).eval())
    with pytest.raises(wb.Unsupported, match="raw_keys=True needs keys that turn with position; .* use raw_keys=False"):
        as_stack(wb.KIVI(raw_keys=True)).new_store(lm, 10)
