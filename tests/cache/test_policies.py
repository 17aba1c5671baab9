"""What policies keep: budgets, kept sets against materialised attention, evicted slots against masked ones, needles."""

import pytest
import torch

import workbench as wb
from tests.cache.conftest import DRAFT, PROMPT, TERMS, build, feed, live_positions
from tests.rounding import close, tolerance
from tests.table import POLICIES, stacks
from workbench.cache import PlainStore, Segment, as_stack
from workbench.engine.attention import column_mass
from workbench.models import adapter
from workbench.models.adapter import wrap

TEXT = (PROMPT * 4)[:150]
STACKS = dict(stacks())


# -- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["streaming", "h2o", "streaming+kivi4", "h2o+kivi2", "snapkv", "snapkv+paged"])
def test_the_budget_holds_after_every_commit(small, name):
    """After maintenance at most the budget, in between at most an interval more; newest tokens and sinks are kept."""
    stack = STACKS[name]
    store = stack.new_store(small, len(PROMPT))
    policy = stack.policy
    budget = policy.sinks + policy.window if policy.declared_name == "streaming" else policy.budget
    for n, token in enumerate(TEXT, 1):
        feed(small, store, [token])
        for layer in range(small.layers):
            for held in live_positions(store, layer):
                assert len(set(held)) == len(held) == store.ledger()["live_slots"][layer]
                assert held[-min(n, policy.newest) :] == list(range(n))[-policy.newest :]
                if policy.declared_name == "snapkv":
                    assert len(held) == (n if n < len(PROMPT) else min(len(PROMPT), budget) + n - len(PROMPT))
                else:
                    assert len(held) <= budget + (policy.interval - 1 if n % policy.interval else 0)
                    assert n < budget or len(held) >= budget
                if policy.declared_name == "streaming":
                    assert held[: policy.sinks] == list(range(min(n, policy.sinks)))


@pytest.mark.parametrize("policy", [wb.StreamingLLM(4, 400), wb.H2O(budget=400), wb.SnapKV(budget=400)])
def test_an_unlimited_budget_changes_nothing(small, policy):
    store = as_stack(policy).new_store(small, len(PROMPT))
    assert close(feed(small, store, TEXT), feed(small, small.new_store(), TEXT), TERMS)
    assert store.ledger()["live_slots"] == [len(TEXT)] * 2 and store.ledger()["evicted"] == [0, 0]


# -- the masked oracle -----------------------------------------------------------------------------------------------


class Masked(PlainStore):
    """Keeps everything and hides what another store has evicted: `hidden[layer]` bool [Hk, length]."""

    hidden: list[torch.Tensor]

    def segments(self, layer: int, window: int | None = None, query: torch.Tensor | None = None) -> list[Segment]:
        (whole,) = super().segments(layer, window)
        heads, n, _ = whole.k.shape
        mask = whole.mask
        if mask is None:
            mask = torch.ones(self._rows, n, dtype=torch.bool).tril(n - self._rows)
        mask = mask.expand(heads, -1, -1).clone()
        mask[:, :, : self.length] &= ~self.hidden[layer][:, None]
        return [Segment(whole.k, whole.v, mask)]


def oracle(lm, stack, steps, slip: int = 0) -> None:
    """Feed chunks of `steps` rows through both stores; rows of one chunk see each other in order or as a tree."""
    store, dense = stack.new_store(lm, len(PROMPT)), Masked(lm.layers)
    worst, at, rotation, evictions = 0.0, 0, 0, 0
    while at < len(TEXT):
        rows = min(steps[rotation % len(steps)], store.rows_left(at), len(TEXT) - at)
        rotation += 1
        dense.hidden = []
        for layer in range(lm.layers):
            held = live_positions(store, layer) if at else [[]] * lm.kv_heads
            hidden = torch.ones(lm.kv_heads, at, dtype=torch.bool)
            for head, places in enumerate(held):
                hidden[head, places] = False
            dense.hidden.append(hidden.roll(slip, 1))
            evictions += int(hidden.sum())
        tree = None
        positions = list(range(at, at + rows))
        if rows == 4:  # a chain of three and a sibling of its second row
            tree = torch.ones(4, 4, dtype=torch.bool).tril()
            tree[3, 1:3] = False
            positions[3] = at + 1
        found, expected = (lm.forward(TEXT[at : at + rows], positions, s, tree).logits for s in (store, dense))
        worst = max(worst, ((found - expected).abs().max() / expected.abs().max()).item())
        kept = rows - 1 if tree is not None else rows
        for s in (store, dense):
            s.commit(range(kept))
        at += kept
    assert evictions > 0 and worst < tolerance(TERMS)


@pytest.mark.parametrize("name", ["streaming", "h2o", "snapkv", "h2o+paged", "streaming+paged"])
def test_evicted_is_dense_attention_with_the_same_slots_masked(small, name):
    """Per head, for single rows, chains of 7 and trees of 4."""
    oracle(small, STACKS[name], (1, 7, 4, 4, 1, 30))


@pytest.mark.parametrize("name", ["h2o", "streaming+paged"])
def test_the_same_in_a_sliding_window(sliding, name):
    oracle(sliding, STACKS[name], (1, 7, 4, 30))


def test_the_oracle_notices_a_mask_that_is_off_by_one(small):
    """Negative control: the neighbour of every slot hidden in its place."""
    with pytest.raises(AssertionError):
        oracle(small, STACKS["h2o"], (1, 7, 4, 4, 1, 30), slip=1)


# -- scores ----------------------------------------------------------------------------------------------------------


class Witness:
    """Materialises the attention of every forward in float64 and adds it up per layer, KV head and position."""

    def __init__(self, store, watches):
        self.store, self.watches = store, watches
        self.mass: list[dict[tuple[int, int], float]] = [{}, {}]
        self.attend = adapter.attend

    def __call__(self, q, segments, scale):
        whole, store = segments[0], self.store
        layer = self.layer = getattr(self, "layer", 1) ^ 1
        heads, n, _ = whole.k.shape
        held = live_positions(store, layer) if store.length else [[]] * heads
        for head in range(heads):
            places = held[head] + list(store._positions)
            for row, at in enumerate(store._positions[-q.shape[2] :]):
                if not self.watches(at):
                    continue
                for query in range(2 * head, 2 * head + 2):
                    scores = whole.k[head].double() @ q[0, query, row].double() * scale
                    seen = torch.tensor([place <= at for place in places])
                    share = scores.masked_fill(~seen, -torch.inf).softmax(-1)
                    for place, part in zip(places, share.tolist(), strict=True):
                        key = (head, place)
                        self.mass[layer][key] = self.mass[layer].get(key, 0.0) + part / 2
        return self.attend(q, segments, scale)


@pytest.mark.parametrize("chunk", [1, 5])
def test_h2o_keeps_what_a_materialised_attention_matrix_says(small, monkeypatch, chunk):
    policy = wb.H2O(budget=20, recent=8, interval=16)
    store = as_stack(policy).new_store(small, 50)
    witness = Witness(store, lambda at: True)
    monkeypatch.setattr(adapter, "attend", witness)
    for start in range(0, 64, 16):
        before = [live_positions(store, layer) if start else [[], []] for layer in range(2)]
        for at in range(start, start + 16, chunk):
            feed(small, store, TEXT[at : min(at + chunk, start + 16)])
        n = start + 16
        for layer in range(2):
            for head, held in enumerate(live_positions(store, layer)):
                candidates = before[layer][head] + list(range(start, n))
                older, recent = candidates[:-8], candidates[-8:]
                ranked = sorted(older, key=lambda at: -witness.mass[layer][head, at])
                expected = sorted(ranked[:12]) + recent if len(candidates) > 20 else candidates
                assert held == expected
    assert live_positions(store, 0)[0] != live_positions(store, 0)[1]  # heads choose for themselves


def test_snapkv_pools_the_attention_of_the_window(small, monkeypatch):
    policy = wb.SnapKV(budget=24, window=8, kernel=3)
    store = as_stack(policy).new_store(small, 50)
    witness = Witness(store, lambda at: 42 <= at < 50)
    monkeypatch.setattr(adapter, "attend", witness)
    feed(small, store, TEXT[:45])
    feed(small, store, TEXT[45:50])
    for layer in range(2):
        for head, held in enumerate(live_positions(store, layer)):
            mass = [witness.mass[layer][head, at] for at in range(42)]
            pooled = [sum(mass[max(at - 1, 0) : at + 2]) / 3 for at in range(42)]
            ranked = sorted(range(42), key=lambda at: -pooled[at])
            assert held == sorted(ranked[:16]) + list(range(42, 50))
    assert all(state.mass is None for state in store._layers)  # never read again, so not held


def test_nobody_computes_attention_mass_for_a_policy_that_reads_none(small, monkeypatch):
    monkeypatch.setattr(adapter, "column_mass", lambda *_: pytest.fail("computed"))
    for stack in (None, STACKS["streaming"], STACKS["kivi4"]):
        wb.decode(small, PROMPT, cache=stack, max_new_tokens=4, level="full")


def test_column_mass_sums_to_one_per_row_and_head(small):
    q, k = torch.randn(1, 4, 3, 16), torch.randn(2, 9, 16)
    mask = torch.ones(3, 9, dtype=torch.bool).tril(6)
    mass = column_mass(
        q, [Segment(k[:, :4], k[:, :4], mask[:, :4]), Segment(k[:, 4:], k[:, 4:], mask[:, 4:])], 0.25, [0, 2]
    )
    assert mass.shape == (2, 2, 9)
    assert torch.allclose(mass.sum(-1), torch.ones(2, 2)) and (mass[0, :, 7:] == 0).all()


# -- needles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, kept", [("h2o", True), ("snapkv", True), ("streaming", False)])
@pytest.mark.parametrize("quantizer", [None, wb.Paged()])
@torch.inference_mode()
def test_a_planted_needle(name, kept, quantizer):
    """One key that every query points at: scoring policies keep it, a window loses it."""
    policy, place, size = POLICIES[name], 9, 16
    store = wb.Stack(policy, quantizer).new_store(wrap(build()), 96)
    torch.manual_seed(0)
    needle = torch.nn.functional.normalize(torch.randn(size), dim=0)
    for at in range(96):
        k = 0.1 * torch.randn(2, 1, size)
        if at == place:
            k[:] = 8 * needle
        q = needle.expand(1, 4, 1, size) * 4
        store.begin([at])
        for layer in range(2):
            store.stage(layer, k, k)
            if store.watched:
                store.add_mass(layer, column_mass(q, store.segments(layer), 1.0, store.watched))
        store.end()
        store.commit([0])
    for layer in range(2):
        assert [place in held for held in live_positions(store, layer)] == [kept, kept]


# -- slot positions --------------------------------------------------------------------------------------------------


def test_keys_read_at_their_slots_are_those_of_a_shorter_text(small):
    """One layer: what the window attends to is the text without its dropped middle, at positions without a gap."""
    lm = wrap(build(num_hidden_layers=1))
    policy = wb.StreamingLLM(sinks=4, window=12, interval=16, positions="slot")
    found = feed(lm, as_stack(policy).new_store(lm, 50), TEXT[:48])[-1]
    baked = feed(lm, as_stack(wb.StreamingLLM(4, 12, 16)).new_store(lm, 50), TEXT[:48])[-1]
    expected = feed(lm, lm.new_store(), TEXT[:4] + TEXT[20:48])[-1]
    assert close(found, expected, TERMS) and not close(baked, expected, TERMS)


def test_models_whose_keys_do_not_turn_are_refused():
    import transformers as tf

    sizes = dict(vocab_size=11, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=None)
    learned = wrap(tf.GPT2LMHeadModel(tf.GPT2Config(**sizes)))
    cache = wb.StreamingLLM(positions="slot")
    with pytest.raises(wb.Unsupported, match="use positions='baked'"):
        wb.decode(learned, [1, 2], cache=cache)
    wb.decode(learned, [1, 2], cache=wb.StreamingLLM(2, 8, 4), max_new_tokens=20)


# -- refusals --------------------------------------------------------------------------------------------------------


def toy_model():
    return wb.ToyModel()


def odd_heads():
    return wrap(build(head_dim=8))


REFUSED = {
    "unknown": (lambda lm: wb.decode(lm, [1], cache="h20"), "unknown cache 'h20'; known: .*h2o"),
    "no member": (lambda lm: wb.decode(lm, [1], cache=3), "expected a policy"),
    "a class": (lambda lm: wb.decode(lm, [1], cache=wb.H2O), "expected a policy"),
    "empty": (lambda lm: wb.Stack(), "expected a policy, a quantizer, a reader"),
    "order": (lambda lm: wb.decode(lm, [1], cache=[wb.KIVI(), wb.H2O()]), "put the policy before the quantizer"),
    "order in a stack": (lambda lm: wb.Stack(wb.KIVI(), wb.H2O()), "put the policy before the quantizer"),
    "a reader first": (lambda lm: wb.decode(lm, [1], cache=[wb.LServe(), wb.KIVI()]), "and the reader last"),
    "two policies": (lambda lm: wb.decode(lm, [1], cache=["h2o", "snapkv"]), "two of the family policy"),
    "budget": (lambda lm: wb.H2O(budget=16, recent=16), "expected a budget above recent=16"),
    "window": (lambda lm: wb.SnapKV(budget=32), "expected a budget above window=32"),
    "kernel": (lambda lm: wb.SnapKV(kernel=4), "expected an odd number"),
    "residual": (lambda lm: wb.Stack(wb.H2O(budget=32), wb.KIVI(residual=32)), "lower residual"),
    "two windows": (lambda lm: wb.Stack(wb.SnapKV(), wb.MixedKIVI()), "reads the attention of a window"),
    "slots and pages": (lambda lm: wb.Stack(wb.StreamingLLM(positions="slot"), wb.KIVI()), "use positions='baked'"),
    "width": (lambda lm: wb.KIVI(bits=3), "expected one of 0, 2, 4, 8, 16"),
    "layer width": (lambda lm: wb.KIVI(layers={0: 5}), "expected widths of"),
    "residual pages": (lambda lm: wb.KIVI(residual=40), "expected a multiple of 32"),
    "head size": (lambda lm: wb.decode(odd_heads(), [1], cache="kivi"), "multiples of 16"),
    "no attention": (lambda lm: wb.decode(toy_model(), [1], cache="h2o"), "reads attention"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(small, name):
    call, message = REFUSED[name]
    with pytest.raises(wb.WorkbenchError, match=message) as caught:
        call(small)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_draft_cache_can_be_declared_by_name():
    assert wb.DraftModel(DRAFT, cache="h2o").cache == wb.Stack(wb.H2O())
