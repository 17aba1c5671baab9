"""Plans: budgets, regimes, costs, two widths, slots that stand for others."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

import workbench as wb
from tests.cache.conftest import PROMPT, TERMS, build, contents, feed, live_positions
from tests.cache.test_random_plans import Random
from tests.rounding import close
from workbench.cache import PlainStore
from workbench.cache.codec import Affine
from workbench.cache.codecs.base import Quantizer
from workbench.cache.managed import ManagedStore
from workbench.cache.pages import PageTable
from workbench.cache.plan import CacheMethod, Plan
from workbench.cache.stack import stack_of
from workbench.engine.attention import attend
from workbench.models.adapter import wrap

TEXT = PROMPT * 8
SMALL = wb.CaM(budget=44, recent=32, spread=3)


# -- budgets ----------------------------------------------------------------------------------------------------------

RAGGED = {
    "adakv": wb.AdaKV(wb.H2O(budget=44, recent=32)),
    "adakv(cam)+kivi4": wb.Stack(wb.AdaKV(SMALL), wb.KIVI(bits=4)),
    "pyramidkv+kivi4": wb.Stack(wb.PyramidKV(budget=48, window=32, steepness=4), wb.KIVI(bits=4)),
}


@pytest.mark.parametrize("name", ["adakv", "adakv(cam)+kivi4"])
def test_a_layer_keeps_to_its_budget_and_heads_differ(small, name):
    store, apart = wb.cache.as_stack(RAGGED[name]).new_store(small, len(PROMPT)), False
    for n in range(32, 321, 32):
        feed(small, store, TEXT[store.length : n])
        for layer in range(small.layers):
            counts = [len(head) for head in live_positions(store, layer)]
            assert sum(counts) == min(n, 44) * 2 and min(counts) >= min(n, 32 + int(0.2 * 12))
            apart |= counts[0] != counts[1]
        feed(small, store, TEXT[n : n + 20])
        assert all(sum(map(len, live_positions(store, layer))) == (min(n, 44) + 20) * 2 for layer in range(2))
    assert apart


def test_pyramid_budgets_fall_from_layer_to_layer_and_keep_their_sum():
    view = SimpleNamespace(positions=torch.zeros(2, 4000))
    for layers, steepness in ((1, 20.0), (2, 4.0), (8, 20.0), (30, 7.0)):
        found = wb.PyramidKV(budget=128, window=32, steepness=steepness).budgets([view] * layers)
        assert sum(found) == 128 * layers and found == sorted(found, reverse=True)
        assert layers == 1 or abs(found[-1] - 32 - 96 / steepness) <= 1
    assert set(wb.PyramidKV(budget=128, window=32, steepness=1.0).budgets([view] * 8)) == {128}


def test_pyramid_layers_hold_their_budgets(small):
    store = wb.PyramidKV(budget=40, window=32, steepness=4.0)
    store = wb.cache.as_stack(store).new_store(small, len(PROMPT))
    feed(small, store, TEXT[: len(PROMPT)])
    assert [len(live_positions(store, layer)[0]) for layer in range(2)] == [46, 34]


NEUTRAL = {
    "adakv": (wb.AdaKV(wb.H2O(budget=44, recent=32), floor=1.0), wb.Stack(wb.H2O(budget=44, recent=32), wb.Paged())),
    "cam": (wb.CaM(budget=44, recent=32, strength=0.0), wb.H2O(budget=44, recent=32)),
    "merging": (wb.Merging(wb.H2O(budget=44, recent=32), threshold=1.5), wb.H2O(budget=44, recent=32)),
    "pyramidkv": (
        wb.PyramidKV(budget=40, window=32, steepness=1.0),
        wb.Stack(wb.SnapKV(budget=40, window=32), wb.Paged()),
    ),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_setting_is_the_method_inside(small, name):
    stores = [wb.cache.as_stack(each).new_store(small, len(PROMPT)) for each in NEUTRAL[name]]
    logits = [feed(small, store, TEXT[:200]) for store in stores]
    assert torch.equal(*logits)
    assert all(torch.equal(*pair) for pair in zip(*map(contents, stores), strict=True))


def test_merging_changes_values_only_where_it_merges(small):
    """CaM adds to values alone, Merging changes keys too; both differ from dropping."""
    drop, cam, merging = (
        wb.cache.as_stack(each).new_store(small, len(PROMPT))
        for each in (wb.H2O(budget=44, recent=32), SMALL, wb.Merging(wb.H2O(budget=44, recent=32), threshold=0.1))
    )
    for store in (drop, cam, merging):
        feed(small, store, TEXT[:64])
    keys = [store._run.k[0][:, : store.held] for store in (drop, cam, merging)]
    assert torch.equal(keys[0], keys[1]) and not torch.equal(keys[0], keys[2])
    assert not torch.equal(drop._run.v[0][:, :44], cam._run.v[0][:, :44])
    events = {event["op"] for event in cam.drain()[0]}
    assert "merge" in events and cam.ledger()["merged"] == [0, 0]


# -- regimes ----------------------------------------------------------------------------------------------------------


def test_a_stack_that_waits_acts_at_the_prompts_end(small):
    text = TEXT[:150]
    for member in (wb.H2O(budget=44, recent=32), wb.KIVI(bits=4)):
        policy, quantizer = (member, None) if member.family == "policy" else (None, member)
        store = wb.Stack(policy, quantizer, during_prompt=False).new_store(small, 100)
        assert store.rows_left(0) == 100 and store.rows_left(100) == 28
        plain = feed(small, small.new_store(), text)
        assert close(feed(small, store, text[:100]), plain[:100], TERMS)
        assert store.drain()[0] and store.length == 100
        assert not close(feed(small, store, text[100:]), plain[100:], TERMS)


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("quantizer", [wb.KIVI(bits=2, residual=0), wb.KIVI(bits=4), wb.Paged()])
def test_a_prompt_in_one_forward_reads_what_it_reads_in_pieces(window, quantizer):
    """Rows behind a boundary see pages, rows before it do not, whatever forward they are in. In float64, where no
    rounding of sums tips a code over."""
    lm = wrap(build(window=window).double())
    stack = wb.Stack(quantizer=quantizer)
    whole, pieces = stack.new_store(lm, 300), stack.new_store(lm, 0)
    assert whole.rows_left(0) == 300 and pieces.rows_left(0) == 32
    found = torch.cat([feed(lm, whole, TEXT[:128]), feed(lm, whole, TEXT[128:300])])
    assert close(found, feed(lm, pieces, TEXT[:300]), TERMS)
    assert [live_positions(store, 1) for store in (whole, pieces)] == [[list(range(300))] * 2] * 2
    assert whole.held == pieces.held
    if quantizer != wb.Paged() and window is None:  # control: unquantized, it would read something else
        assert not close(found, feed(lm, lm.new_store(), TEXT[:300]), TERMS)


# -- costs ------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_pages_that_no_plan_names_are_neither_read_nor_decoded(small, monkeypatch):
    """Appending costs what is appended, whatever lies there already."""
    store = wb.Stack(quantizer=wb.KIVI(bits=4)).new_store(small, 0)
    feed(small, store, TEXT[:288])
    packed = []
    honest = Affine.pack
    monkeypatch.setattr(Affine, "pack", lambda self, k, *rest: packed.append(len(k)) or honest(self, k, *rest))
    for name in ("decode", "places", "read", "_unpacked"):
        monkeypatch.setattr(PageTable, name, None)
    k = torch.randn(2, 32, 16)
    store.begin(range(288, 320))
    for layer in range(2):
        store.stage(layer, k, k)
    store.end()
    store.commit(range(32))
    assert packed == [2, 2] and [state.page_table.slots for state in store._layers] == [288, 288]


@pytest.mark.parametrize("rule, again", [("sparse", True), ("never", False)])
def test_coded_pages_are_rounded_anew_only_where_the_stack_says_so(small, rule, again):
    store = wb.Stack(wb.H2O(budget=64, recent=32), wb.KIVI(bits=8, residual=0), requantize=rule).new_store(small, 50)
    feed(small, store, TEXT[:320])
    assert ("requantize" in {event["op"] for event in store.drain()[0]}) == again
    assert again or sum(store.ledger()["dead"]) > 0


# -- two widths -------------------------------------------------------------------------------------------------------


def test_what_is_looked_at_most_keeps_more_bits(small):
    """By hand: of each 64 tokens that left, the half with most attention at that moment lies in pages of 8 bits."""
    quantizer = wb.MixedKIVI(bits=8, low_bits=2, share=0.5, interval=64, residual=0)
    store, watch = (wb.Stack(*parts).new_store(small, 50) for parts in ((None, quantizer), (wb.H2O(budget=4000), None)))
    feed(small, store, TEXT[:64])
    feed(small, watch, TEXT[:64])
    for layer in range(2):
        table, mass = store._layers[layer].page_table, watch._layers[layer].mass
        where, live = table.places()
        for head in range(2):
            pages = [
                (page.codec.bits[0], set(where[head, 32 * i : 32 * i + 32].tolist()))
                for i, page in enumerate(table.pages[head])
            ]
            assert pages == [(8, set(mass[head].topk(32).indices.tolist())), (2, set(range(64)) - pages[0][1])]
    assert live.all() and store.ledger()["bits_nominal"] == [5.0, 5.0]
    bits = store.drain()[1]
    assert (
        sorted(set(zip(bits["bits_k"], bits["bits_v"], strict=True))) == [(2, 2), (8, 8)] and sum(bits["length"]) == 256
    )


def test_pages_of_two_widths_fill_and_are_never_rounded_twice(small):
    store = wb.Stack(wb.H2O(budget=96, recent=64), wb.MixedKIVI(bits=8, low_bits=2, share=0.5, interval=64)).new_store(
        small, 50
    )
    feed(small, store, TEXT[:96])
    assert [[(page.codec.bits[0], page.live) for page in row] for row in store._layers[0].page_table.pages] == [
        [(8, 32), (2, 32)]
    ] * 2
    feed(small, store, TEXT[96:400])
    assert "requantize" not in {event["op"] for event in store.drain()[0]}


def test_one_width_is_kivi(small):
    mixed, kivi = (wb.Stack(quantizer=q).new_store(small, 0) for q in (wb.MixedKIVI(share=1.0, interval=32), wb.KIVI()))
    assert torch.equal(*(feed(small, store, TEXT[:200]) for store in (mixed, kivi)))


# -- stacks of one's own ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("residual", "interval"), [(16, 32), (32, 64), (64, 48), (0, 96)])
def test_quantizers_of_other_intervals_read_the_same_however_a_prompt_goes_in(wide, residual, interval):
    @dataclass(frozen=True)
    class Own(Quantizer):
        declared_name = "test-own"
        on_device = None

        def widths(self, layer):
            return 2, 2

    Own.residual, Own.interval = residual, interval
    whole, pieces = (wb.Stack(quantizer=Own()).new_store(wide, prompt) for prompt in (300, 0))
    assert close(feed(wide, whole, TEXT[:300]), feed(wide, pieces, TEXT[:300]), TERMS)
    assert live_positions(whole, 0) == live_positions(pieces, 0) and whole.held == pieces.held


def test_what_cannot_be_wrapped_is_refused(small):
    with pytest.raises(wb.BadInput, match="expected a policy that gives importance, got test-random"):
        wb.AdaKV(Random())
    stack = wb.cache.as_stack(wb.Merging(SMALL))
    with pytest.raises(wb.BadInput, match="cam merges already; expected one that drops"):
        feed(small, stack.new_store(small, 50), TEXT[:64])


def test_a_short_prompt_gets_a_flatter_pyramid(small):
    """Budgets above the prompt go to the last layers."""
    store = wb.cache.as_stack(wb.PyramidKV(budget=40, window=8, steepness=8.0)).new_store(small, 50)
    feed(small, store, TEXT[:50])
    assert [len(live_positions(store, layer)[0]) for layer in range(2)] == [50, 30]


def test_heads_that_hold_few_slots_leave_theirs_to_others():
    live = torch.ones(2, 60, dtype=torch.bool)
    live[0, :48] = False
    view = SimpleNamespace(positions=torch.arange(60).expand(2, -1), live=live, stats={"mass": torch.rand(2, 60)})
    for floor in (0.0, 0.8):
        budgets = wb.AdaKV(wb.H2O(budget=30, recent=8), floor=floor).budgets([view])[0]
        assert budgets.clamp_max(live.sum(-1)).sum() == 60, (floor, budgets)


# -- a slot that stands for others ------------------------------------------------------------------------------------


def alike(stack, spread: float) -> list[torch.Tensor]:
    """What a query finds in a plain cache and under a stack, where old keys are equal but for `spread`."""
    torch.manual_seed(0)
    k, v, q = torch.randn(2, 128, 16), torch.randn(2, 128, 16), torch.randn(1, 4, 1, 16)
    k[:, 4:96] = k[:, 4:5] + spread * torch.randn(2, 92, 16)
    found = []
    for store in (PlainStore(1), ManagedStore(1, stack, 0)):
        for start in range(0, 128, 32):
            store.begin(range(start, start + 32))
            store.stage(0, k[:, start : start + 32], v[:, start : start + 32])
            store.end()
            store.commit(range(32))
        store.begin([128])
        store.stage(0, k[:, :1], v[:, :1])
        found.append(attend(q, store.segments(0), 0.25))
        assert type(store) is PlainStore or [len(head) for head in live_positions(store, 0)] == [37, 37]
    return found


@torch.inference_mode()
def test_equal_keys_may_be_dropped_without_a_trace(monkeypatch):
    """Exact where the dropped keys are equal, whatever their values; not without the bias, nor where keys differ."""
    razor = wb.cache.as_stack(wb.RazorAttention(sinks=4, window=32))
    plain, found = alike(razor, 0.0)
    assert close(found, plain, terms=16 + 150)
    assert not close(*reversed(alike(razor, 0.3)), terms=16 + 150)
    honest = ManagedStore.segments
    monkeypatch.setattr(ManagedStore, "segments", lambda *args: [replace(s, bias=None) for s in honest(*args)])
    assert not close(*reversed(alike(razor, 0.0)), terms=16 + 150)


def test_retrieval_heads_keep_all_and_the_others_count_what_they_dropped(small):
    store = wb.cache.as_stack(wb.RazorAttention(retrieval="0.1", sinks=4, window=32)).new_store(small, 50)
    feed(small, store, TEXT[:300])
    assert [[len(head) for head in live_positions(store, layer)] for layer in range(2)] == [[49, 300], [49, 49]]
    counts = [state.bias.exp().round()[state.bias > 0].tolist() for state in store._layers]
    assert counts == [[252.0], [252.0, 252.0]] and store.ledger()["bias"] == [s.bias.nbytes for s in store._layers]
    events = [event for event in store.drain()[0] if event["op"] == "merge"]
    assert sum(length for event in events for _, length in event["positions"] if event.get("layer") == 0) == 251


def test_a_compensation_slot_that_is_off_is_streaming(small):
    razor, streaming, whole, plain = (
        feed(small, wb.cache.as_stack(each).new_store(small, 50) if each else small.new_store(), TEXT[:200])
        for each in (wb.RazorAttention(window=40, compensate=False), wb.Stack(wb.StreamingLLM(4, 40), wb.Paged()),
                     wb.RazorAttention(retrieval="0.0 0.1 1.0 1.1", window=40), None)
    )  # fmt: skip
    assert torch.equal(razor, streaming) and close(whole, plain, TERMS)


@pytest.mark.parametrize(
    "bias", [torch.zeros(2, 8).double(), torch.zeros(2, 7), torch.full((2, 8), 1e3), [[0.0] * 8] * 2]
)
def test_a_wrong_bias_is_refused(small, bias):
    method = Random()
    view = SimpleNamespace(positions=torch.arange(8).expand(2, -1), live=torch.ones(2, 8, dtype=torch.bool))
    object.__setattr__(method, "plan", lambda view, budget: Plan(bias=bias))
    with pytest.raises(
        wb.BadInput, match=r"plan\(\) answered bias .*; expected float32 \[2, 8\] on cpu, finite"
    ) as refused:
        method.checked(view, 4)
    assert "\n" not in str(refused.value)


def test_a_stack_of_names_takes_settings_of_its_own():
    stack = stack_of(["h2o", "kivi"], {"budget": "96", "bits": "2", "during_prompt": "false", "requantize": "never"})
    assert stack == wb.Stack(wb.H2O(budget=96), wb.KIVI(bits=2), during_prompt=False, requantize="never")
    with pytest.raises(wb.BadInput, match="requantize"):
        stack_of(["kivi"], {"requantize": "often"})
    with pytest.raises(wb.BadInput, match="parameter of none"):
        stack_of([], {"requantize": "never"})


@dataclass(frozen=True)
class Lopsided(CacheMethod):
    """Drops one slot of the first layer alone."""

    declared_name = "test-lopsided"
    interval, budget, newest, ragged = 32, 999, 32, True

    def plan(self, view, budget):
        gone = (view.positions == 20) & (view.layer == 0) & (view.length > 32)
        return Plan(view.live & ~gone) if gone.any() else None


def test_what_a_policy_drops_in_one_layer_keeps_the_runs_of_all_alike(small):
    """Between two turns of the quantizer: what leaves the run leaves it in every layer."""
    store = wb.Stack(Lopsided(), wb.MixedKIVI(bits=8, low_bits=8, interval=128)).new_store(small, 0)
    for end in (64, 96, 128, 200):
        feed(small, store, TEXT[store.length : end])
        assert {x.shape[1] for x in (*store._run.k, *store._run.v)} == {store._run.capacity}
        wanted = [[n for n in range(end) if n != 20 or layer] for layer in range(2)]
        assert [live_positions(store, layer) for layer in range(2)] == [[each] * 2 for each in wanted]
