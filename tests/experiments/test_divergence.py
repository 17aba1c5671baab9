"""How far two runs' distributions are apart: from their traces, against the full distributions that `compare`
measures."""

from copy import deepcopy
from types import SimpleNamespace

import pytest

import workbench as wb
from tests.speculation.tiny import tiny_target
from workbench.errors import BadInput
from workbench.trace.distributions import distributions, divergence


@pytest.fixture(scope="module")
def runs():
    """The same text under the full cache and with most of it evicted; five words, so that a trace keeps whole
    distributions."""
    tiny = tiny_target("tiny-distributions")
    asked = {"max_new_tokens": 24, "level": "full", "temperature": 1.0, "seed": 7}
    full = wb.decode(tiny, [1, 2, 3, 4] * 4, **asked)
    small = wb.decode(tiny, [1, 2, 3, 4] * 4, cache=wb.H2O(budget=8, recent=4), force=full.token_ids, **asked)
    arms = {"full": None, "small": wb.Arm(wb.Autoregressive(), wb.H2O(budget=8, recent=4))}
    asked.pop("level")
    table = wb.compare(tiny, [[1, 2, 3, 4] * 4], arms, gaps=True, progress=False, **asked)
    return SimpleNamespace(full=full, small=small, gap=table["kl_nats"]["small"])


def test_whole_distributions_give_the_divergence_that_compare_measures(runs):
    assert runs.full.divergence(runs.full) == 0
    assert runs.small.divergence(runs.full) == pytest.approx(runs.gap, rel=1e-3)
    assert runs.gap > 0.01


def test_lumping_what_is_missing_never_adds(runs):
    """Data processing: with the two most likely tokens only, the figure is smaller and not zero."""
    whole = runs.small.divergence(runs.full)
    small, full = deepcopy(runs.small), deepcopy(runs.full)
    for event in (*small.log, *full.log):
        if event["type"] == "rows":
            for row in (*event["target"]["ids"], *event["target"]["logp"]):
                del row[2:]
    assert 0 < divergence(small, full) < whole


def test_other_texts_and_levels_are_refused(runs):
    other = wb.decode("tiny-distributions", [1, 2], max_new_tokens=3, level="full")
    with pytest.raises(BadInput, match="force=reference.token_ids"):
        other.divergence(runs.full)
    with pytest.raises(BadInput, match="level 'default'; record at level 'full'"):
        distributions(wb.decode("tiny-distributions", [1, 2], max_new_tokens=3))
