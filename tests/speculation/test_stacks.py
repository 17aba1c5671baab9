"""Drafters under every cache stack spell what plain decoding spells under that stack.

On a random Llama of five words, with trained parts of its own. Six drafters take their turn under each stack, so that
each of them meets every policy and every quantizer; and the shape changes from stack to stack.
"""

import itertools

import pytest

import workbench as wb
from tests.speculation.test_triples import POSSIBLE
from tests.speculation.tiny import tiny_heads, tiny_target
from tests.table import DRAFTERS, POLICIES, QUANTIZERS, stacks, triple
from workbench.speculation.training.acceptance import acceptance
from workbench.speculation.training.parts import PARTS

PROMPT = [(i * i + i // 3) % 5 for i in range(40)]
SETTINGS = {"max_new_tokens": 28, "temperature": 1.0, "seed": 4}
STACKS = dict(stacks())


@pytest.fixture(scope="module")
def target():
    tiny_target("tiny-stack-draft", seed=5, context=128, width=32)
    return tiny_target("tiny-stack", context=128, width=32)


@pytest.fixture(scope="module")
def heads(target, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("heads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PARTS, "acceptance", acceptance("tiny-stack-draft"))
        for kind in ("acceptance", "eagle", "hydra", "kangaroo", "medusa"):
            tiny_heads(target, kind, folder, steps=3)
    return str(folder)


def members(stack: str) -> list[tuple[str, str]]:
    """(drafter, shape) of the six whose turn it is."""
    number, names = list(STACKS).index(stack), list(DRAFTERS)
    chosen = [names[(3 * number + place) % len(names)] for place in range(6)]
    fitting = [[names[1] for names in POSSIBLE if names[::2] == (drafter, "keyed")] for drafter in chosen]
    return [(drafter, shapes[number % len(shapes)]) for drafter, shapes in zip(chosen, fitting, strict=True)]


@pytest.mark.parametrize("stack", STACKS)
def test_speculative_text_is_the_plain_text_of_the_stack(stack, target, heads):
    cache = STACKS[stack]
    plain = wb.decode(target, PROMPT, cache=cache, **SETTINGS)
    assert len(plain.token_ids) == SETTINGS["max_new_tokens"]
    drafted = accepted = 0
    for drafter, shape in members(stack):
        decoder = triple(drafter, shape, "keyed", "tiny-stack-draft", heads)
        trace = wb.decode(target, PROMPT, decoder, cache=cache, **SETTINGS)
        assert trace.token_ids == plain.token_ids, (drafter, shape)
        drafted, accepted = drafted + trace.rounds["drafted"].sum(), accepted + trace.rounds["accepted"].sum()
    assert 0 < accepted < drafted


def test_each_drafter_meets_every_policy_and_quantizer():
    met = {(drafter, part) for stack in STACKS for drafter, _ in members(stack) for part in stack.split("+")}
    assert met == set(itertools.product(DRAFTERS, (*POLICIES, *QUANTIZERS)))
