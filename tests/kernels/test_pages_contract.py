"""Packed pages: the ledger, what is refused, who computes, and that every kernel compiles for GPUs."""

import importlib
import importlib.util
from dataclasses import replace

import pytest
import torch

from tests.kernels.aot import compile_all
from tests.kernels.test_pages import FORMS, arena_for, hard, packed, rows_of
from workbench_kernels import pages
from workbench_kernels.pages import RAW, PageFormat
from workbench_kernels.pages.kernel_common import Arena, Rows, sides
from workbench_kernels.pages.kernel_rotation import Channels


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("live", "used"), [(None, None), (0, None), (5, 5), (5, 32), (0, 31)])
def test_the_ledger_sums_to_the_page(name, live, used):
    """Whatever lives in it; evicted slots are dead, slots not written yet are padding."""
    form = FORMS[name]
    kinds = pages.ledger(form, live, used)
    live = form.slots if live is None else live
    assert sum(kinds.values()) == form.bytes and min(kinds.values()) >= 0
    assert kinds["payload"] * 8 == live * (
        form.head_dim * form.stored(form.bits_k) + form.value_dim * form.stored(form.bits_v)
    )
    assert kinds["pad"] == 0 if (used or live) == form.slots else kinds["pad"] > 0
    assert (kinds["dead"] > 0) == ((used or live) > live)


def test_the_ledger_counts_by_hand():
    """D = 64, groups of 32 at 4 bits: 4 · 64 bytes of key steps, 4 · 64 of value steps, 2 · 1024 of codes."""
    kinds = {"payload": 2048, "scale": 256, "zero": 256, "position": 128, "header": 16, "dead": 0, "pad": 0}
    assert pages.ledger(PageFormat(64, 64, 4, 4, 32)) == kinds
    assert PageFormat(128, 128, 4, 4, 64, slots=64).bytes == 16 + 256 + 512 + 512 + 8192
    assert [PageFormat(64, 64, b, b, 64).bytes for b in (2, 4, 8, 16)] == [1552, 2576, 4624, 8336]
    with pytest.raises(ValueError, match="got 3 live of 2 used"):
        pages.ledger(PageFormat(64, 64), 3, 2)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 7e4, -7e4])
def test_values_a_half_cannot_hold_are_refused(value):
    """In live slots alone: what an empty slot holds is never stored."""
    form = FORMS["32-8-8"]
    k, v, positions, used = rows_of(form)
    v[3, 16, 9] = value  # the last live slot
    with pytest.raises(ValueError, match="expected finite values within ±65504; pack them RAW"):
        pages.pack(k, v, positions, used, form)
    v[3, 16, 9] = 0
    v[3, 17, 9] = value  # an empty slot
    pages.pack(k, v, positions, used, form)


def test_what_does_not_fit_is_refused():
    """Before any byte is written, with one line that says what was expected."""
    form = FORMS["32-8-8"]
    k, _, positions, used = rows_of(form)
    arena, offsets = arena_for(form, 6)
    for match, arguments in {
        r"expected floating v \[6, 32, 32\]": (k, hard(48), positions, used, form),
        "expected an arena and offsets, or neither": (k, k, positions, used, form, arena),
        r"indices \[6, 32\], got torch.float32": (k, k, positions.float(), used, form),
        "contiguous uint8 arena .* with gaps": (k, k, positions, used, form, arena[::2], offsets),
        "starts and ends at multiples of 16": (k, k, positions, used, form, arena[8:-8], offsets),
    }.items():
        with pytest.raises(ValueError, match=match):
            pages.pack(*arguments)
    with pytest.raises(ValueError, match=r"expected pages uint8 \[n, 2576\] or an arena with offsets"):
        pages.unpack(arena, form)
    with pytest.raises(ValueError, match="keys go from 8 to 4 to 2 bits or stay, got 8 to 0"):
        pages.demote(packed(form), form, replace(form, bits_k=RAW))
    with pytest.raises(ValueError, match="differ in their widths only"):
        pages.demote(packed(form), form, replace(form, group=32))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((32, 32, 3), "expected widths of"),
        ((40, 32), "multiples of 16"),
        ((32, 48, 8, 8, 32), r"of the group \(32\), got 32 and 48"),
        ((0, 32), "got 0 and 32"),
        ((32, 32, 8, 8, 32, torch.float32, 48), "expected 32 or 64 slots, got 48"),
        ((32, 32, RAW, RAW, 0), "multiples of 16 and of the group"),
        ((32, 32, RAW, RAW, 32, torch.int8), "expected a floating dtype"),
    ],
)
def test_formats_that_do_not_fit_are_refused(arguments, match):
    """Widths, head sizes, groups and dtypes that the layout has no place for."""
    with pytest.raises(ValueError, match=match):
        PageFormat(*arguments)


def test_dispatch_takes_refuses_and_falls_back(monkeypatch):
    """A reason comes with every choice and every refusal."""
    assert pages.choose("cpu") == ("torch", "the page is on 'cpu'")
    assert pages.choose("cuda", torch.bfloat16) == ("triton", "the page is on 'cuda'")
    assert pages.choose("cuda", torch.float64) == ("torch", "it computes in float32, and something is float64")
    assert pages.choose("cuda", implementation="torch") == ("torch", "asked for")
    form = FORMS["32-8-8"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="something is float64; use implementation='torch'"):
        pages.pack(hard(32).double(), *rows_of(form)[1:], form, implementation="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="interpreter is off"):
        pages.unpack(packed(form), form, implementation="triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        pages.choose("cuda", implementation="triton")
    with pytest.raises(ValueError, match="expected 'auto', 'triton' or 'torch', got 'cuda'"):
        pages.choose("cuda", implementation="cuda")


def signature(kernel: str, constants: dict, types: dict[str, str]) -> tuple[str, str, dict, dict, dict]:
    """A row for `compile_all`: int32 pointers and numbers where nothing else is said."""
    module, name = kernel.split(".")
    module = f"workbench_kernels.pages.kernel_{module}"
    arguments = {}
    for argument in getattr(importlib.import_module(module), name).arg_names:
        plain = "constexpr" if argument in constants else "*i32" if argument.endswith("_ptr") else "i32"
        arguments[argument] = types.get(argument, plain)
    return module, name, arguments, constants, {"num_warps": 4}


def test_the_kernels_compile_for_gpus_that_are_not_here():
    """Ahead of time for sm80 and sm90: 4-bit keys, 2-bit values, else bfloat16, D = 128."""
    coded, stored = (sides(PageFormat(128, 128, *bits, 32, torch.bfloat16)) for bits in ((4, 2), (RAW, RAW)))
    wide = sides(PageFormat(128, 128, 8, 8, 32))
    smaller = wide | {"TO_K": coded["K"], "TO_V": coded["V"]}
    codes, patterns = (Arena("*i32", "*fp16", kind, kind) for kind in ("*u8", "*i16"))
    kept = {"arena": patterns, "k": Rows("*i16", "i32", "i32"), "v": Rows("*i16", "i32", "i32")}
    turn = {"CHANNELS": Channels(128, 48, 64, 32)}
    dense = {"arena": codes, "k_ptr": "*bf16", "v_ptr": "*bf16", "positions_ptr": "*i64", "live_ptr": "*u8"}
    rows = Rows("*bf16", "i32", "i32")
    turned = {"inv_freq_ptr": "*fp32", "origin": ["*i32", "i32"], "target": ["*i32", "i32"]}
    done = compile_all(
        signature("pack.pack_kernel", coded, {"arena": codes, "k": rows, "v": rows}),
        signature("pack.pack_kernel", stored, kept),
        signature("read.read_kernel", coded, dense),
        signature("read.read_kernel", coded | {"slots_ptr": None}, dense),
        signature("read.demote_kernel", smaller, {"out": codes, "arena": codes}),
        signature("slots.evict_kernel", {}, {}),
        signature("rotation.rotate_kernel", turn, {"out_ptr": "*bf16", "k": rows} | turned),
    )
    assert done.count("kernel 80") == done.count("kernel 90") == 7
