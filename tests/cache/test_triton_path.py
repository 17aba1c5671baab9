"""The engine with its Triton kernels forced: under the interpreter here, natively where there is a GPU."""

import copy

import pytest
import torch

import workbench as wb
from tests.cache.conftest import DRAFT, PROMPT, TERMS
from tests.rounding import close
from workbench.device import round as device
from workbench.models.adapter import wrap
from workbench_kernels.dispatch import VARIABLE

ARMS = {
    "plain": None,
    "chain": wb.Speculative(drafter=wb.DraftModel(DRAFT), shape=wb.FixedLength(3)),
    "tree": wb.Speculative(drafter=wb.DraftModel(DRAFT), shape=wb.FixedTree((2, 1))),
    "copy": wb.Speculative(drafter=wb.CopySpec(ngram=2)),
}
CACHES = {
    "none": None,
    "h2o": wb.H2O(budget=32, recent=8, interval=8),
    "streaming": wb.StreamingLLM(sinks=2, window=20, interval=8),
    "kivi": wb.KIVI(bits=4, group=16),
    "kivi-k8-v2": wb.KIVI(bits_k=8, bits_v=2, group=16),
    "kivi-64": wb.KIVI(bits=4, group=16, page_size=64, residual=0),
    "h2o+kivi": [wb.H2O(budget=40, recent=8, interval=8), wb.KIVI(bits=8, group=16, residual=0)],
}
LENGTH = 10


@pytest.fixture(scope="module")
def small(small):
    """The pair, copied to the GPU where there is one."""
    if not torch.cuda.is_available():
        yield small
        return
    draft = wb.load(DRAFT)
    wb.register_model(DRAFT, copy.deepcopy(draft.model).cuda())
    yield wrap(copy.deepcopy(small.model).cuda())
    wb.register_model(DRAFT, draft)


@pytest.fixture
def triton(monkeypatch):
    """The kernels forced, in rounds that the host leads on a GPU too."""
    monkeypatch.setenv(device.VARIABLE, "host")
    monkeypatch.setenv(VARIABLE, "triton")


@pytest.mark.parametrize("arm", ARMS)
def test_greedy_text_is_that_of_generate(small, triton, arm):
    ids = torch.tensor([PROMPT], device=small.device)
    expected = small.model.generate(ids, max_new_tokens=LENGTH, do_sample=False)[0, len(PROMPT) :].tolist()
    trace = wb.decode(small, PROMPT, ARMS[arm], max_new_tokens=LENGTH)
    assert trace.token_ids == expected
    assert set(trace.forwards["implementation"]) == {"triton"}


@pytest.mark.parametrize("cache", [name for name in CACHES if name != "none"])
def test_every_stack_spells_what_the_torch_path_spells(small, monkeypatch, triton, cache):
    """Masses, pages and merges of the kernels decide nothing differently. One stack goes all the way, greedy and
    seeded, plain and drafted; the others, for the interpreter's sake, some tokens, seeded and drafted."""
    whole = cache == "kivi"
    for settings in [{"temperature": 0.8, "seed": 3}, *([{}] if whole else [])]:
        options = {"cache": CACHES[cache], "max_new_tokens": LENGTH if whole else 4, "ignore_eos": True, **settings}
        for arm in ("plain", "chain") if whole else ("chain",):
            monkeypatch.setenv(VARIABLE, "torch")
            expected = wb.decode(small, PROMPT, ARMS[arm], **options)
            monkeypatch.setenv(VARIABLE, "triton")
            found = wb.decode(small, PROMPT, ARMS[arm], **options)
            assert found.token_ids == expected.token_ids
            kept = [trace.events.query("op == 'evict'")["positions"].tolist() for trace in (found, expected)]
            assert kept[0] == kept[1]
            of_target = found.forwards.query("model == 'target'")["implementation"]
            assert set(of_target) == {"triton"} and "triton" not in set(expected.forwards["implementation"])


def test_logits_of_the_two_paths_are_close(small, monkeypatch, triton):
    rows = {}
    for implementation in ("torch", "triton"):
        monkeypatch.setenv(VARIABLE, implementation)
        store = small.new_store()
        small.forward(PROMPT, range(len(PROMPT)), store)
        store.commit(range(len(PROMPT)))
        tree = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)
        rows[implementation] = small.forward([3, 4, 5], [50, 51, 51], store, tree).logits
    assert close(rows["triton"], rows["torch"], TERMS)
    assert not torch.equal(rows["triton"], rows["torch"])  # the path was taken
