"""What a policy or quantizer of one's own answers is checked before it is done: a wrong answer corrupted the cache."""

from dataclasses import dataclass

import pytest
import torch

import workbench as wb
from tests.cache.conftest import feed
from workbench.cache import as_stack
from workbench.cache.codecs.base import Quantizer
from workbench.cache.plan import CacheMethod, Merge, Plan
from workbench.errors import BadInput

LENGTH, N = 8, 8
EVENLY = torch.tensor([[1, 0, 1, 0, 1, 0, 1, 1]] * 2).bool()


@dataclass(frozen=True)
class Answering(CacheMethod):
    """Answers what it is told to."""

    declared_name = "test-answering"
    interval = LENGTH
    budget = 5
    answer = None

    @property
    def newest(self):
        return 2

    def plan(self, view, budget):
        return self.answer


def merging(**other) -> Plan:
    """A sound merge of slot 1 into slot 2 of both heads, but for `other`."""
    pairs = {"source": torch.tensor([[1], [1]]), "target": torch.tensor([[2], [2]])}
    pairs |= {name: torch.full((2, 1), 0.5) for name in ("weight_k", "weight_v")}
    return Plan(EVENLY, Merge(**(pairs | {k: torch.as_tensor(v) for k, v in other.items()})))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (EVENLY, "a Tensor; expected a Plan"),
        (Plan([[True] * N] * 2), "keep of list; expected keep, bool [2, 8]"),
        (Plan(EVENLY.long()), "keep of torch.int64"),
        (Plan(EVENLY[:1]), "keep of shape [1, 8]"),
        (Plan(EVENLY[0]), "keep of shape [8]"),
        (Plan(EVENLY.to("meta")), "on meta; expected keep"),
        (Plan(EVENLY.roll(1, 1)), "keep without the newest; expected keep, bool [2, 8] on cpu, with the newest 2"),
        (Plan(torch.zeros(2, N, dtype=torch.bool)), "keep without the newest"),
        (Plan(EVENLY | torch.tensor([[False], [True]])), "5 to 8 slots in the heads of a layer; expected as many"),
        (merging(source=[[1], [9]]), "a merge of columns outside the view"),
        (merging(source=[[1], [-1]]), "a merge of columns outside the view"),
        (merging(target=[[2], [3]]), "a merge into a slot that does not stay; expected targets in keep"),
        (merging(source=[[1.0], [1.0]]), "a merge of torch.float32"),
        (merging(source=[[1], [1], [1]]), "a merge of shapes [3, 1], [2, 1]"),
        (merging(weight_k=[[0.5], [float("nan")]]), "a merge with a weight that is not finite"),
        (
            merging(weight_v=torch.tensor([[0.5], [1e300]]).double()),
            "a merge with a weight that is not finite or above 1e+06",
        ),
        (merging(weight_v=[[1j], [0.5]]), "torch.complex64; expected a Merge"),
        (Plan(EVENLY, merging().merge._replace(source=[[1], [1]])), "a merge of type Merge, of list, Tensor"),
        (Plan(EVENLY, tuple(merging().merge)), "a merge of type tuple"),
        (Plan(EVENLY, 3), "a merge of type int"),
        (Plan(EVENLY, Merge(*(x.repeat(1, 2) for x in merging(source=[[2], [2]]).merge))), "two pairs of a slot with"),
    ],
)
def test_a_wrong_plan_is_refused_and_nothing_changes(small, monkeypatch, answer, words):
    store = as_stack(Answering()).new_store(small, 3)
    feed(small, store, range(LENGTH - 1))
    monkeypatch.setattr(Answering, "answer", answer)
    before = store.fork()
    with pytest.raises(BadInput) as refused:
        feed(small, store, [LENGTH - 1])
    said = str(refused.value)
    assert said.startswith("policy test-answering: plan() answered ") and words in said and "\n" not in said
    monkeypatch.setattr(Answering, "answer", merging())
    feed(small, before, [LENGTH - 1])
    assert before.ledger()["live_slots"] == [5, 5]
    assert before.ledger()["evicted"] == [2, 2] and before.ledger()["merged"] == [1, 1]
    feed(small, store, [0])  # the maintenance that failed is made up for
    assert store.ledger()["live_slots"] == [6, 6]


def test_a_run_under_a_wrong_policy_ends_with_its_reason_and_its_trace(small, monkeypatch):
    monkeypatch.setattr(Answering, "answer", Plan(torch.zeros(2, LENGTH, dtype=torch.bool)))
    with pytest.raises(BadInput, match="without the newest") as refused:
        wb.decode(small, [1, 2, 3], cache=Answering(), max_new_tokens=12)
    assert 0 < len(refused.value.trace.token_ids) < LENGTH and refused.value.trace.end["reason"] == "error"


@dataclass(frozen=True)
class Uneven(Answering):
    """Keeps what it is told in the first layer, all in the second."""

    declared_name = "test-uneven"
    given = None

    def budgets(self, views):
        return self.given or super().budgets(views)

    def plan(self, view, budget):
        return None if view.layer else Plan(EVENLY)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "plan() left 5 to 8 slots in the layers; expected as many in each"),
        ([5], "budgets() answered 1 of them; expected one for each of 2 layers"),
        ([5, -1], "budgets() answered -1; expected a number of slots, or int64 [2], of at least 0"),
        ([5, 5.5], "budgets() answered 5.5"),
        ([5, torch.tensor([1, 2, 3])], "budgets() answered"),
    ],
)
def test_layers_that_differ_and_wrong_budgets_are_refused(small, monkeypatch, given, words):
    """Layers of different lengths read slots that nobody had written, without an error."""
    monkeypatch.setattr(Uneven, "given", given)
    store = as_stack(Uneven()).new_store(small, 3)
    with pytest.raises(BadInput) as refused:
        feed(small, store, range(LENGTH))
    assert str(refused.value).startswith("policy test-uneven: ") and words in str(refused.value)


def test_a_merge_without_pairs_is_no_merge(small, monkeypatch):
    none = torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.int64)
    monkeypatch.setattr(Answering, "answer", Plan(EVENLY, Merge(*none, torch.zeros(2, 0), torch.zeros(2, 0))))
    store = as_stack(Answering()).new_store(small, 3)
    feed(small, store, range(LENGTH))
    assert store.ledger()["live_slots"] == [5, 5] and store.ledger()["merged"] == [0, 0]


@pytest.mark.parametrize("at", [LENGTH - 1, 0, 2.5, "soon"])
def test_a_maintenance_in_the_past_is_refused_before_any_work(small, monkeypatch, at):
    """It would have asked for another one for ever."""
    monkeypatch.setattr(Answering, "next", lambda self, length, prompt: at if length < LENGTH - 1 else length)
    with pytest.raises(BadInput, match=r"policy test-answering: next\(\d+\) answered"):
        wb.decode(small, [1] * LENGTH, cache=Answering(), max_new_tokens=2)
    monkeypatch.setattr(Widths, "next", lambda self, length: at if length < LENGTH - 1 else length)
    with pytest.raises(BadInput, match=r"quantizer test-widths: next\(\d+\) answered"):
        wb.decode(small, [1] * LENGTH, cache=Widths(), max_new_tokens=2)


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
