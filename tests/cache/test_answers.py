"""What a policy or quantizer of one's own answers is checked before it is done: a wrong answer corrupted the cache."""

from dataclasses import dataclass

import pytest
import torch

import workbench as wb
from tests.cache.conftest import feed
from workbench.cache import as_stack
from workbench.cache.codecs.base import Quantizer
from workbench.cache.methods.base import CachePolicy
from workbench.errors import BadInput

LENGTH, N = 8, 8
EVENLY = torch.tensor([[0, 2, 4, 6, 7]] * 2)


@dataclass(frozen=True)
class Answering(CachePolicy):
    """Answers what it is told to."""

    declared_name = "test-answering"
    interval = LENGTH
    answer = None

    @property
    def newest(self):
        return 2

    def keep(self, positions, scores):
        return self.answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.tensor([[0, 2, 2, 6, 7]] * 2), "the same index twice"),
        (torch.tensor([[0, 2, 6, 7, 7], [0, 2, 4, 6, 7]]), "the same index twice"),
        ([[0, 6, 7], [6, 7]], "a list"),
        (EVENLY + 1, "indices from 1 to 8"),
        (EVENLY - 1, "indices from -1 to 6"),
        (torch.tensor([[0, 2, 4, 5, 7]] * 2), "without the newest"),
        (torch.tensor([[7]] * 2), "without the newest"),
        (torch.ones(2, N, dtype=torch.bool), "torch.bool"),
        (EVENLY.float(), "torch.float32"),
        (EVENLY[:1], "shape [1, 5]"),
        (EVENLY[0], "shape [5]"),
        (EVENLY[:, :0], "shape [2, 0]"),
        (EVENLY.to("meta"), "on meta, not on cpu"),
    ],
)
def test_a_wrong_choice_of_slots_is_refused_and_nothing_changes(small, monkeypatch, answer, words):
    """Repeated indices dealt one head's slots out to the next, without an error."""
    store = as_stack(Answering()).new_store(small, 3)
    feed(small, store, range(LENGTH - 1))
    monkeypatch.setattr(Answering, "answer", answer)
    before = store.fork()
    with pytest.raises(BadInput) as refused:
        feed(small, store, [LENGTH - 1])
    said = str(refused.value)
    assert said.startswith("policy test-answering: keep() answered ") and words in said and "\n" not in said
    assert f"expected int64 indices [2, kept] below {N}, different ones" in said
    monkeypatch.setattr(Answering, "answer", EVENLY)
    feed(small, before, [LENGTH - 1])
    assert before.ledger()["live_slots"] == [5, 5] and before.ledger()["evicted"] == [3, 3]
    feed(small, store, [0])  # the maintenance that failed is made up for
    assert store.ledger()["live_slots"] == [6, 6]


def test_a_run_under_a_wrong_policy_ends_with_its_reason_and_its_trace(small, monkeypatch):
    monkeypatch.setattr(Answering, "answer", torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(BadInput, match="the same index twice|without the newest") as refused:
        wb.decode(small, [1, 2, 3], cache=Answering(), max_new_tokens=12)
    assert 0 < len(refused.value.trace.token_ids) < LENGTH and refused.value.trace.end["reason"] == "error"


@pytest.mark.parametrize("at", [LENGTH - 1, 0, 2.5, "soon"])
def test_a_maintenance_in_the_past_is_refused_before_any_work(small, monkeypatch, at):
    """It would have asked for another one for ever."""
    monkeypatch.setattr(Answering, "next", lambda self, length, prompt: at if length < LENGTH - 1 else length)
    with pytest.raises(BadInput, match=r"policy test-answering: next\(\d+\) answered"):
        wb.decode(small, [1] * LENGTH, cache=Answering(), max_new_tokens=2)


@dataclass(frozen=True)
class Widths(Quantizer):
    declared_name = "test-widths"
    residual: int = 32
    on_device: int | None = None
    answer = (4, 4)

    def widths(self, layer):
        return self.answer


@pytest.mark.parametrize("answer", [4, (4,), (4, 4, 4), (4.0, 4), ("4", 4), (True, 4), None, (3, 4)])
def test_widths_that_no_page_has_are_refused_before_any_work(small, monkeypatch, answer):
    monkeypatch.setattr(Widths, "answer", answer)
    with pytest.raises((BadInput, wb.Unsupported), match="test-widths: ") as refused:
        wb.decode(small, [1, 2], cache=Widths(), max_new_tokens=2)
    assert "\n" not in str(refused.value)


def test_attention_mass_of_another_shape_is_refused(small):
    """Of a model that gives the mass of its query heads, or of rows that nobody watches."""
    store = as_stack(wb.H2O(budget=4, interval=4)).new_store(small, 3)
    feed(small, store, [1])
    store.begin([1])
    with pytest.raises(RuntimeError, match=r"layer 0: attention mass \[1, 4, 2\], expected \[1, 2, 'slots'\]"):
        store.add_mass(0, torch.zeros(1, 4, 2))
