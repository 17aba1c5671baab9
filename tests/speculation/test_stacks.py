"""Drafters under every cache stack spell what plain decoding spells under that stack.

On a random Llama of five words, with trained parts of its own. Under each stack those drafters take their turn that
have met its members least, so that each meets every policy and every quantizer; the shape changes from stack to stack.
"""

import copy
import itertools
import os
from collections import Counter
from functools import partial

import pytest

import workbench as wb
from tests.rounding import Texts
from tests.speculation.test_triples import POSSIBLE
from tests.speculation.tiny import tiny_heads, tiny_target
from tests.table import DRAFTERS, POLICIES, QUANTIZERS, READERS, covered, length, triple
from workbench.models.adapter import wrap
from workbench.training.acceptance import acceptance
from workbench.training.parts import PARTS

PROMPT = [(i * i + i // 3) % 5 for i in range(40)]
SETTINGS = {"max_new_tokens": 28, "temperature": 1.0, "seed": 4}
STACKS = covered()
TEXTS = Texts()


@pytest.fixture(scope="module")
def target():
    tiny_target("tiny-stack-draft", seed=5, context=256, width=32)
    return tiny_target("tiny-stack", context=256, width=32)


@pytest.fixture(scope="module")
def heads(target, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("heads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PARTS, "acceptance", acceptance("tiny-stack-draft"))
        for kind in ("acceptance", "eagle", "hydra", "kangaroo", "medusa"):
            tiny_heads(target, kind, folder, steps=3)
    return str(folder)


def turns() -> dict[str, list[str]]:
    """The drafters of each stack; all where WORKBENCH_CAMPAIGN is set."""
    if os.environ.get("WORKBENCH_CAMPAIGN"):
        return {stack: list(DRAFTERS) for stack in STACKS}
    met, chosen = Counter(), {}
    for stack in STACKS:
        parts = stack.split("+")
        drafters = sorted(DRAFTERS, key=lambda name: (sum(met[name, part] > 0 for part in parts), met[name]))
        chosen[stack] = drafters[:4]
        met.update([(name, part) for name in chosen[stack] for part in parts] + chosen[stack])
    for drafter, part in itertools.product(DRAFTERS, (*POLICIES, *QUANTIZERS, *READERS)):
        if not met[drafter, part]:
            chosen[part].append(drafter)
    return chosen


TURNS = turns()


def members(stack: str) -> list[tuple[str, str]]:
    """(drafter, shape) of those whose turn it is."""
    number, chosen = list(STACKS).index(stack), TURNS[stack]
    fitting = [[names[1] for names in POSSIBLE if names[::2] == (drafter, "seeded")] for drafter in chosen]
    return [(drafter, shapes[number % len(shapes)]) for drafter, shapes in zip(chosen, fitting, strict=True)]


@pytest.fixture(scope="module")
def wide(target):
    """The target in float64, where a near-tie vanishes and a bug does not."""
    return wrap(copy.deepcopy(target.model).double())


def spelled(lm, cache, decoder=None, traces: list | None = None) -> list[int]:
    """The text; its trace goes into the list."""
    trace = wb.decode(lm, PROMPT * length(cache), decoder, cache=cache, **SETTINGS)
    if traces is not None:
        traces.append(trace)
    return trace.token_ids


@pytest.mark.parametrize("stack", STACKS)
def test_speculative_text_is_the_plain_text_of_the_stack(stack, target, wide, heads):
    cache, traces = STACKS[stack], []
    plain = spelled(target, cache)
    assert len(plain) == SETTINGS["max_new_tokens"]
    for drafter, shape in members(stack):
        decoder = triple(drafter, shape, "seeded", "tiny-stack-draft", heads)
        TEXTS.same(
            f"{drafter} {shape} under {stack}",
            partial(spelled, target, cache),
            partial(spelled, target, cache, decoder, traces),
            partial(lambda decoder: (spelled(wide, cache), spelled(wide, cache, decoder)), decoder),
            expected=plain,
        )
    drafted, accepted = (sum(trace.rounds[name].sum() for trace in traces) for name in ("drafted", "accepted"))
    assert 0 < accepted < drafted


def test_few_texts_were_forgiven():
    TEXTS.assert_few()


def test_each_drafter_meets_every_member():
    met = {(drafter, part) for stack in STACKS for drafter, _ in members(stack) for part in stack.split("+")}
    assert met == set(itertools.product(DRAFTERS, (*POLICIES, *QUANTIZERS, *READERS)))
