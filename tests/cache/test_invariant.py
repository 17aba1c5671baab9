"""The invariant of caches: speculative output under a cache stack is plain output under that stack, token by token."""

from functools import partial

import pytest
import torch

import workbench as wb
from tests.another_cpu import another_cpu
from tests.cache.conftest import DRAFT, PROMPT
from tests.rounding import Texts
from tests.table import DECODERS, POLICIES, QUANTIZERS, READERS, commit, covered, length, stacks
from workbench import declare
from workbench.cache import PlainStore
from workbench.cache.layer import Layer

LENGTH = 40
STACKS, COVERED = dict(stacks()), list(covered())
PROBES = ["speculative", "speculative-tree"]  # a chain and a tree meet every stack, the other decoders take turns
LOSSLESS = [name for name, row in DECODERS.items() if row.lossless and name != "autoregressive"]
known: dict = {}
TEXTS = Texts()


def decode(lm, decoder, stack, temperature: float) -> list[int]:
    prompt = PROMPT * length(stack)
    return wb.decode(
        lm, prompt, decoder, cache=stack, temperature=temperature, seed=4, max_new_tokens=LENGTH, level="off"
    ).token_ids


def plain(lm, name: str, temperature: float) -> list[int]:
    key = (lm.dtype, name, temperature)
    if key not in known:
        known[key] = decode(lm, None, STACKS[name], temperature)
    return known[key]


@pytest.mark.parametrize("family, rows", [("policy", POLICIES), ("quantizer", QUANTIZERS), ("reader", READERS)])
def test_every_registered_member_has_a_row(family, rows):
    ours = {n for n in declare.names(family) if declare.get(family, n).__module__.startswith("workbench.")}
    assert ours == {row.declared_name for row in rows.values()}


@pytest.mark.parametrize("name", COVERED)
def test_speculative_text_is_the_plain_text_of_the_stack(small, wide, name):
    """Five lossless decoders under every policy, every quantizer and pairs of them.

    Seeded draws at T = 1 where a decoder promises the seed's text, else greedy. Near-ties are told apart from bugs.
    """
    others, turn = [each for each in LOSSLESS if each not in PROBES], commit() + COVERED.index(name)
    for decoder in [*PROBES, *(others[(turn + place) % len(others)] for place in range(3))]:
        row = DECODERS[decoder]
        temperature = 1.0 if row.sampled == "seeded" else 0.0
        same(TEXTS, f"{decoder} under {name}", small, wide, row.make(DRAFT), name, temperature)


def same(texts: Texts, what: str, small, wide, decoder, name: str, temperature: float, decode=decode) -> None:
    """Assert that a decoder spells the plain text of a stack, as `decode` has it."""
    texts.same(
        what,
        partial(plain_run, small, name, temperature),
        partial(decode, small, decoder, STACKS[name], temperature),
        lambda: (plain(wide, name, temperature), decode(wide, decoder, STACKS[name], temperature)),
        expected=plain(small, name, temperature),
    )


def plain_run(lm, name: str, temperature: float) -> list[int]:
    return decode(lm, None, STACKS[name], temperature)


def test_few_texts_were_forgiven():
    TEXTS.assert_few()


def test_an_error_of_a_hundredth_in_fp32_would_break_it(small, wide):
    """Negative control: drafts judged by products that are off by one in a hundred; in float64 they are not."""

    def wrong(*args) -> list[int]:
        with another_cpu(ulps=1e-2 / torch.finfo(torch.float32).eps):
            return decode(*args)

    with pytest.raises(AssertionError, match="differs, margin"):
        for name in ("streaming", "h2o", "kivi4", "h2o+kivi2"):
            decoder = DECODERS["speculative-copyspec"].make(DRAFT)
            same(Texts(), name, small, wide, decoder, name, 1.0, wrong)


def test_the_texts_are_worth_comparing(small):
    """Full length, not one text for all, and drafts are accepted and refused."""
    texts = {name: plain(small, name, 1.0) for name in COVERED}
    assert all(len(text) == LENGTH for text in texts.values())
    assert len({tuple(text) for text in texts.values()}) >= len(COVERED) // 2
    rounds = wb.decode(
        small, PROMPT, DECODERS["speculative"].make(DRAFT), cache=STACKS["h2o"], max_new_tokens=LENGTH
    ).rounds
    drafted = rounds[rounds["drafted"] > 0]
    assert 0 < drafted["accepted"].sum() < drafted["drafted"].sum()


@pytest.mark.parametrize("name", ["h2o", "kivi2", "h2o+kivi4"])
def test_drafting_across_a_boundary_would_break_it(small, name, monkeypatch):
    """Negative control: the store refuses rows behind its next maintenance, which is what the cap is there for."""
    from workbench.cache.protocol import MANY
    from workbench.rounds import Runner

    monkeypatch.setattr(Runner, "rows_left", lambda self, length: MANY)
    with pytest.raises(RuntimeError, match="pass the cache's maintenance"):
        decode(small, DECODERS["speculative"].make(DRAFT), STACKS[name], 0.0)


def test_the_mass_of_rejected_rows_would_break_it(small, monkeypatch):
    """Negative control: scores that count every drafted row, whether it was committed or not."""

    class Everything(list):
        def __contains__(self, row) -> bool:
            return True

    honest = Layer.folded
    monkeypatch.setattr(Layer, "folded", lambda self, seen, rows, *rest: honest(self, seen, Everything(rows), *rest))
    with pytest.raises(AssertionError):
        for name in ("h2o", "h2o+kivi4", "h2o+kivi2"):
            for decoder in LOSSLESS:
                assert decode(small, DECODERS[decoder].make(DRAFT), STACKS[name], 0.0) == plain(small, name, 0.0)


@pytest.mark.parametrize("name", ["mirostat", "entropy_adaptive"])
@pytest.mark.parametrize("stack", ["streaming", "h2o+kivi4"])
def test_decoders_with_distributions_of_their_own_run_and_repeat(small, name, stack):
    row = DECODERS[name]
    texts = [decode(small, row.make(DRAFT), STACKS[stack], 0.0) for _ in range(2)]
    assert texts[0] == texts[1] and len(texts[0]) == LENGTH


@pytest.mark.parametrize("stack", ["streaming", "h2o", "snapkv+kivi4", "h2o+paged"])
def test_a_draft_under_a_stack_of_its_own_changes_no_token(small, stack):
    """The draft's cache decides what is proposed, never what is written."""
    for shape in (wb.FixedLength(3), wb.FixedTree((2, 2, 1))):
        decoder = wb.Speculative(drafter=wb.DraftModel(DRAFT, cache=STACKS[stack]), shape=shape)
        assert decode(small, decoder, None, 1.0) == decode(small, None, None, 1.0)
        assert decode(small, decoder, STACKS["h2o"], 1.0) == plain(small, "h2o", 1.0)


@pytest.mark.parametrize("name", ["streaming", "h2o", "snapkv", "h2o+kivi4", "streaming+paged"])
def test_sliding_windows_under_a_stack(sliding, name):
    for decoder in ("speculative-copyspec",):
        found = decode(sliding, DECODERS[decoder].make(DRAFT), STACKS[name], 1.0)
        assert found == decode(sliding, None, STACKS[name], 1.0)


@pytest.mark.parametrize("positions", ["slot", "capped"])
def test_slots_read_at_their_places_under_speculation(small, positions):
    stack = wb.StreamingLLM(sinks=4, window=24, interval=16, positions=positions)
    expected = decode(small, None, stack, 1.0)
    assert decode(small, DECODERS["speculative-tree"].make(DRAFT), stack, 1.0) == expected
    baked = wb.StreamingLLM(sinks=4, window=24, interval=16)
    assert decode(small, None, baked, 1.0) != expected


@pytest.mark.parametrize("name", ["none", "h2o", "kivi4", "streaming+paged", "slot", "capped"])
def test_chains_without_a_mask_spell_the_same(small, name, monkeypatch):
    """Rows behind a prefix as a GPU is given them: causal from the right, in chunks of a prompt and in drafts."""
    turned = {at: wb.StreamingLLM(sinks=4, window=24, interval=16, positions=at) for at in ("slot", "capped")}
    stacks = {"none": None, **turned, **STACKS}
    unmasked = []
    for decoder in (None, DECODERS["speculative"].make(DRAFT)):
        masked = decode(small, decoder, stacks[name], 1.0)
        with monkeypatch.context() as patch:
            patch.setattr(PlainStore, "_unmasked", staticmethod(lambda k: unmasked.append(k) or True))
            assert decode(small, decoder, stacks[name], 1.0) == masked
    assert unmasked


def test_the_toy_model_forgets_what_a_window_drops(toy):
    """Its distribution needs the last two tokens: a window of two is exact, one of one is not, drafted or not."""
    text = wb.decode(toy, [0, 1, 2], max_new_tokens=40).token_ids
    drafted = wb.Speculative(drafter=wb.DraftModel("toy-draft"))
    for decoder in (None, drafted):
        kept = wb.decode(toy, [0, 1, 2], decoder, cache=wb.StreamingLLM(0, 2, interval=2), max_new_tokens=40).token_ids
        assert kept == text
    short = [
        wb.decode(toy, [0, 1, 2], decoder, cache=wb.StreamingLLM(0, 1, interval=5), temperature=1.0, max_new_tokens=40)
        for decoder in (None, drafted)
    ]
    assert short[0].token_ids == short[1].token_ids
