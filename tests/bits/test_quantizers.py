"""Quantizers on a model: raw pages change nothing, widths are what was asked for, errors are bounded."""

import itertools

import pytest
import torch

import workbench as wb
from tests.cache.conftest import PROMPT, TERMS, build, feed, live_positions
from tests.rounding import close, tolerance
from workbench.cache import as_stack
from workbench.models.adapter import wrap

TEXT = (PROMPT * 4)[:140]


@pytest.fixture(scope="module")
def small():
    return wrap(build())


def logits(lm, cache, text=TEXT) -> torch.Tensor:
    return feed(lm, lm.new_store() if cache is None else as_stack(cache).new_store(lm, len(PROMPT)), list(text))


def quantized(store, layer: int):
    """k, v, positions, live of a layer's pages; [Hk, slots, …]."""
    return store._layers[layer].page_table.decode()


@pytest.mark.parametrize("cache", [wb.Paged(), wb.Paged(residual=0), wb.KIVI(bits=0), wb.Paged(on_device=32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pages_in_the_models_own_dtype_change_nothing(cache, dtype):
    lm = wrap(build().to(dtype))
    found, expected = logits(lm, cache), logits(lm, None)
    # in bfloat16 sums run wider, and each of some forty tensors on the way is rounded once
    within = 5e-2 if dtype == torch.bfloat16 else tolerance(TERMS, dtype=dtype)
    assert (found - expected).abs().max() <= within * expected.abs().max()
    assert (logits(lm, wb.KIVI(bits=4)) - expected).abs().max() > within * expected.abs().max()  # it can fail


def test_an_unlimited_budget_on_raw_pages_is_the_plain_path(small):
    for policy in (wb.H2O(budget=500), wb.SnapKV(budget=500), wb.StreamingLLM(4, 500)):
        found, expected = logits(small, [policy, wb.Paged()]), logits(small, None)
        assert close(found, expected, TERMS)


def test_wider_codes_are_closer(small):
    """Mean KL of the plain distribution from that under each width, on forced text: falls with every width, and is not
    zero."""
    exact = logits(small, None).double().log_softmax(-1)
    kl = []
    for bits in (2, 4, 8, 16):
        found = logits(small, wb.KIVI(bits=bits, residual=0)).double().log_softmax(-1)
        kl.append(torch.nn.functional.kl_div(found, exact, log_target=True, reduction="none").sum(-1).mean().item())
    assert kl == sorted(kl, reverse=True) and kl[0] > 0.01 and 0 < kl[2] < 1e-2 and kl[3] < 1e-4


def test_keys_and_values_have_widths_of_their_own(small):
    """Narrow keys, exact values, and the other way round: the exact side is exact, the narrow one is not."""
    for bits_k, bits_v in ((2, 0), (0, 2)):
        store = as_stack(wb.KIVI(bits_k=bits_k, bits_v=bits_v, residual=0)).new_store(small, 50)
        plain = small.new_store()
        for each, start in itertools.product((store, plain), (0, 32)):  # chunks alike: products of one shape are equal
            feed(small, each, TEXT[start : start + 32])
        k, v, where, live = quantized(store, 0)
        assert live.all() and where[0].tolist() == list(range(64))
        errors = [(x - y[0][:, :64]).abs().max().item() for x, y in ((k, plain._run.k), (v, plain._run.v))]
        assert (errors[0] == 0) == (bits_k == 0) and (errors[1] == 0) == (bits_v == 0) and max(errors) > 0.01


@pytest.mark.parametrize("layers", [{"a": 8, 1: 8}, {-1: 8}, {10**9: 8}, {None: 2}, {1.5: 4}], ids=repr)
def test_layers_are_numbers_of_layers(layers):
    with pytest.raises(wb.BadInput, match=r"KIVI\(layers=…\): expected layers in \[0, 4095\]"):
        wb.KIVI(layers=layers)


def test_layers_have_widths_of_their_own(small):
    for layers in ({1: 8}, [-1, 8], (2, 8)):
        kivi = wb.KIVI(bits=2, layers=layers)
        assert kivi.widths(0) == (2, 2) and kivi.widths(1) == (8, 8) and kivi.widths(7) == (2, 2)
        store = as_stack(kivi).new_store(small, 50)
        feed(small, store, TEXT[:96])
        assert store.ledger()["bits_nominal"] == [2.0, 8.0]
        first, second = store.ledger()["payload"]
        assert first < second


@pytest.mark.parametrize("residual", [0, 32, 64])
def test_the_residual_window(small, residual):
    """After every commit the newest `residual` tokens and up to a page more lie raw; the rest is in full pages."""
    store = as_stack(wb.KIVI(bits=4, residual=residual)).new_store(small, 50)
    for n, token in enumerate(TEXT, 1):
        feed(small, store, [token])
        raw = n if n < residual + 32 else residual + n % 32
        assert store.held == raw and live_positions(store, 1) == [list(range(n))] * 2
        assert store.read_stats()[:2] == (raw, n - raw)


def test_quantized_values_err_by_half_a_step_at_most(small):
    store, plain = as_stack(wb.KIVI(bits=4, residual=0)).new_store(small, 50), small.new_store()
    for each in (store, plain):
        feed(small, each, TEXT[:32])
    k, v, _, _ = quantized(store, 0)
    for found, exact, axis in ((k, plain._run.k[0][:, :32], 1), (v, plain._run.v[0][:, :32], 2)):
        reach = exact.amax(axis, keepdim=True) - exact.amin(axis, keepdim=True)
        assert ((found - exact).abs() <= reach / 15 / 2 * 1.02 + 1e-3).all() and (found != exact).any()


def test_half_dead_pages_are_packed_together(small):
    """Under H2O pages lose slots; the number of pages stays near what the live slots need."""
    store = wb.Stack(wb.H2O(budget=64, recent=32), wb.KIVI(bits=8, residual=0)).new_store(small, 50)
    feed(small, store, (PROMPT * 8)[:384])
    for state in store._layers:
        for row in state.page_table.pages:
            assert sum(page.live for page in row) == 64 and len(row) <= 4
        assert state.mass.shape == (2, state.page_table.slots)
    events, bits, _ = store.drain()
    ops = {event["op"] for event in events}
    assert {"evict", "quantize", "requantize"} <= ops
    assert set(bits["reason"]) == {"quantize"} and set(bits["bits_k"]) == {8}  # packing anew changes no width
    assert store.drain() == ([], {}, {})


def test_the_trace_says_which_tokens_are_how_wide(small):
    trace = wb.decode(small, PROMPT, cache=wb.KIVI(bits_k=4, bits_v=2), max_new_tokens=60)
    bits = trace.bits
    changed = bits[bits["reason"] == "quantize"]
    assert set(changed["bits_k"]) == {4.0} and set(changed["bits_v"]) == {2.0} and (changed["length"] == 32).all()
    assert (changed["err_rms_k"] > 0).all() and changed["err_rms_v"].mean() > changed["err_rms_k"].mean() / 4
    for layer in range(2):
        for head in range(2):
            mine = changed[(changed["layer"] == layer) & (changed["head"] == head)]
            assert mine["start"].tolist() == [0, 32] and set(mine["model"]) == {"target"}
    assert trace.run["cache"]["settings"]["quantizer"]["name"] == "kivi"
    nominal = trace.cache["bits_nominal"].iloc[-1]
    assert nominal == 3.0 and trace.cache["bits_effective"].iloc[-1] > nominal


@torch.inference_mode()
def test_values_that_no_half_step_can_hold_end_the_run_by_name(small):
    """Beyond ±65504 steps would be infinite: refused with the layer, instead of spoiling a channel."""
    for cache, refused in ((wb.KIVI(bits=8, residual=0), True), (wb.Paged(residual=0), False)):
        store = as_stack(cache).new_store(small, 50)
        store.begin(range(32))
        for layer in range(2):
            k = torch.ones(2, 32, 16)
            k[0, 3, 5] = 1e6 if layer else 1.0
            store.stage(layer, k, k)
        store.end()
        if refused:
            with pytest.raises(wb.NumericalError, match="layer 1 cannot be quantized"):
                store.commit(range(32))
        else:
            store.commit(range(32))
            assert store._layers[1].page_table.decode()[0].max() == 1e6
