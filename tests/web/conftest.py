"""Recorded runs to look at."""

from types import SimpleNamespace

import pytest

import workbench as wb

HOSTILE = "</script><script>window.broken=1</script><!--<img src=x onerror='window.broken=1'>\u2028\u2029]]>&lt;${1}"


@pytest.fixture(scope="session")
def speculative(lm, held_out):
    """512 tokens of real text, drafted and verified."""
    decoder = wb.Speculative(drafter=wb.DraftModel("embedded-draft"))
    settings = {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 512, "ignore_eos": True}
    return wb.decode(lm, held_out[3], decoder, **settings)


@pytest.fixture(scope="session")
def tree(lm, held_out):
    """A short run whose drafts branch."""
    decoder = wb.Speculative(drafter=wb.DraftModel("embedded-draft"), shape=wb.FixedTree())
    return wb.decode(lm, held_out[0], decoder, max_new_tokens=24)


@pytest.fixture(scope="session")
def managed(lm, held_out):
    """Drafted and verified by chance, under a cache that evicts and quantizes."""
    decoder = wb.Speculative(drafter=wb.DraftModel("embedded-draft"), verifier=wb.Rejection())
    stack = wb.Stack(wb.H2O(budget=96), wb.KIVI(bits=4))
    settings = {"temperature": 0.8, "top_p": 0.95, "seed": 3, "max_new_tokens": 64, "ignore_eos": True}
    return wb.decode(lm, held_out[3][-400:], decoder, cache=stack, **settings)


@pytest.fixture(scope="session")
def capsules(speculative, tree, managed, tmp_path_factory):
    """Files to open: `long`, `tree`, `managed`."""
    folder = tmp_path_factory.mktemp("capsules")
    runs = {"long": speculative, "tree": tree, "managed": managed}
    return SimpleNamespace(**{name: run.capsule(folder / f"{name}.html") for name, run in runs.items()})


@pytest.fixture
def hostile(lm):
    """A run whose prompt, texts and names are all markup."""
    trace = wb.decode(lm, f"# {HOSTILE}\n", max_new_tokens=4)
    log = [{**event} for event in trace.log]
    log[0] |= {"id": HOSTILE, "device": HOSTILE, "guarantee": HOSTILE}
    log[0]["decoder"] = {"name": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    for event in log:
        if event["type"] == "round" and event["emitted"]:
            own = [HOSTILE] * event["emitted"]
            event["tokens"] = {**event["tokens"], "text": own, "source": own}
    return wb.Trace(log)
