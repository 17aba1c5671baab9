"""Every drafter × shape × verifier: what goes together spells what plain decoding spells, the rest says why not.

On a random Llama of five words and two layers, with trained parts of its own.
"""

import itertools
from functools import partial

import pytest

import workbench as wb
from tests.rounding import MARGIN, margins
from tests.speculation.tiny import tiny_heads, tiny_target
from tests.table import DRAFTERS, SHAPES, VERIFIERS, refusal, triple
from workbench.errors import BadInput
from workbench.speculation import refusals
from workbench.training.acceptance import acceptance
from workbench.training.parts import PARTS

PROMPT = [0, 1, 2, 3, 4, 2, 0, 1, 2, 3]
LENGTH = 9
SAMPLED = {"temperature": 0.8, "seed": 5}
HOW = ({}, SAMPLED)
POSSIBLE = [names for names in itertools.product(DRAFTERS, SHAPES, VERIFIERS) if refusal(*names) is None]


@pytest.fixture(scope="module")
def target():
    tiny_target("tiny-draft", seed=5)
    return tiny_target()


@pytest.fixture(scope="module")
def heads(target, tmp_path_factory) -> str:
    """A folder with every trained part, a few steps each."""
    folder = tmp_path_factory.mktemp("heads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PARTS, "acceptance", acceptance("tiny-draft"))
        for kind in ("acceptance", "eagle", "hydra", "judge", "kangaroo", "medusa"):
            tiny_heads(target, kind, folder, steps=3)
    return str(folder)


@pytest.fixture(scope="module")
def plain(target):
    """Both texts; no token in them was a near thing, so that no CPU spells another."""
    ways = [partial(lambda how: wb.decode(target, PROMPT, max_new_tokens=LENGTH, **how).token_ids, how) for how in HOW]
    assert min(margin for way in ways for margin in margins(way)) > 100 * MARGIN
    return [way() for way in ways]


def test_most_go_together():
    """So that a table that refuses everything does not pass."""
    assert len(POSSIBLE) > 450
    for place, family in enumerate((DRAFTERS, SHAPES, VERIFIERS)):
        assert {names[place] for names in POSSIBLE} == set(family)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_what_cannot_go_together_says_why(drafter):
    for shape, verifier in itertools.product(SHAPES, VERIFIERS):
        reason = refusal(drafter, shape, verifier)
        if reason is None:
            triple(drafter, shape, verifier, "tiny-draft")
            continue
        with pytest.raises(BadInput, match=reason) as caught:
            triple(drafter, shape, verifier, "tiny-draft")
        assert "\n" not in str(caught.value)


def test_the_list_of_refusals_is_what_is_refused():
    listed = {names[:2]: names[2] for names in refusals()}
    alone = [name for name in DRAFTERS if name != "fuse"]  # whose refusals are those of its parts
    for drafter, shape in itertools.product(alone, SHAPES):
        reason = refusal(drafter, shape, "seeded")
        assert (reason in listed[drafter, shape]) if reason else (drafter, shape) not in listed
    assert {second for first, second, _ in refusals() if first == "kseq"} >= set(SHAPES) - {"chains", "del"}


@pytest.mark.parametrize(
    ("drafter", "shape"), [pytest.param(*pair, id="-".join(pair)) for pair in sorted({names[:2] for names in POSSIBLE})]
)
def test_what_goes_together_spells_what_plain_decoding_spells(drafter, shape, target, heads, plain):
    """Greedy under every verifier; seeded seed by seed; the others sample, draft something, and can be repeated."""
    drafted = 0
    for verifier in VERIFIERS:
        if (drafter, shape, verifier) not in POSSIBLE:
            continue
        decoder = triple(drafter, shape, verifier, "tiny-draft", heads)
        trace = wb.decode(target, PROMPT, decoder, max_new_tokens=LENGTH)
        assert trace.token_ids == plain[0], verifier
        drafted += trace.rounds["drafted"].sum()
        if verifier == "greedy":
            continue
        sampled = wb.decode(target, PROMPT, decoder, max_new_tokens=LENGTH, **SAMPLED)
        if verifier == "seeded":
            assert sampled.token_ids == plain[1]
        else:
            assert len(sampled.token_ids) == LENGTH
        drafted += sampled.rounds["drafted"].sum()
    assert drafted > 0
