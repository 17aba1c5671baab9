"""A constraint allows a token exactly where brute force finds a text of its language that goes on with it."""

import itertools
import json
import random
import re
from types import SimpleNamespace

import pytest

import workbench as wb
from workbench.control.constraints.base import Masks

EOS = 299


class Pieces:
    """A tokenizer of 300 short texts over a few letters: all of one letter, some of up to six, the last one none."""

    all_special_ids = (EOS,)

    def __init__(self, letters: str):
        draw = random.Random(1)
        found = dict.fromkeys(letters)
        while len(found) < EOS:
            found["".join(draw.choices(letters, k=draw.randint(2, 6)))] = None
        self.pieces = [*found, "<end>"]

    def __len__(self):
        return len(self.pieces)

    def decode(self, ids, **options):
        return "".join(self.pieces[i] for i in ids)


def lm_of(letters: str):
    return SimpleNamespace(name="pieces", tokenizer=Pieces(letters), vocab_size=len(Pieces(letters)) + 4)


def by_pattern(pattern: str, letters: str, longest: int) -> set[str]:
    every = ("".join(parts) for size in range(longest + 1) for parts in itertools.product(letters, repeat=size))
    return {text for text in every if re.fullmatch(pattern, text)}


def nested(depth: int) -> set[str]:
    """Balanced brackets around one or two letters x, by hand."""
    found = {"x", "xx"}
    for _ in range(depth):
        found |= {f"({text})" for text in found}
    return found


SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "xy"]}, "b": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
    "required": ["a"],
    "additionalProperties": False,
}
LISTS = [[], *([one] for one in (True, False)), *([a, b] for a in (True, False) for b in (True, False))]
OBJECTS = [{"a": a} | more for a in ("x", "xy") for more in ({}, *({"b": b} for b in LISTS))]

CASES = {  # constraint, letters, its texts up to a length, and how long those are that the masks are asked behind
    "finite": (wb.Regex("(a|bb)[01]{1,3}x?"), "ab01x", by_pattern("(a|bb)[01]{1,3}x?", "ab01x", 6), 6),
    "infinite": (wb.Regex("(ab|c[^ac]*)+b?"), "abc", by_pattern("(ab|c[^ac]*)+b?", "abc", 10), 3),
    "schema": (wb.JSONSchema(SCHEMA), '{}[]":, abxytruefals', {json.dumps(one) for one in OBJECTS}, 99),
    "grammar": (wb.Grammar('start: "(" start ")" | X\nX: /x{1,2}/'), "()x", nested(16), 7),
}


@pytest.mark.parametrize("case", CASES)
def test_the_mask_is_what_brute_force_finds(case):
    """Every token of 300, behind beginnings of the language as tokens spell them in many ways; the end-of-text token
    where the text may end; nothing outside."""
    constraint, letters, language, longest = CASES[case]
    lm, draw = lm_of(letters), random.Random(2)
    begun = {text[:size] for text in language for size in range(len(text) + 1)}
    masks, pieces = Masks(constraint, lm, [0], frozenset({EOS})), lm.tokenizer.pieces[:EOS]
    ends = inner = 0
    for _ in range(40):
        ids, text = [0], ""
        while True:
            mask = masks.allowed(ids)
            wanted = {id for id, piece in enumerate(pieces) if text + piece in begun}
            wanted |= {EOS} if text in language else set()
            assert mask is not None and len(mask) == lm.vocab_size
            assert set(mask.nonzero()[:, 0].tolist()) == wanted, (text, ids)
            ends, inner = ends + (text in language), inner + (text not in language)
            outside = next(id for id in draw.sample(range(EOS), EOS) if id not in wanted)
            assert not masks.holds([*ids, outside]) and masks.allowed([*ids, outside]) is None
            ids.append(draw.choice(sorted(wanted)[: draw.choice((3, EOS))]))  # single letters come first
            if ids[-1] == EOS or len(text := text + pieces[ids[-1]]) > longest:
                break
        assert ids[-1] != EOS or (masks.allowed(ids) is None and masks.holds(ids) and masks.complete(ids))
    assert ends > 10 and inner > 10


def test_a_memo_of_one_place_gives_the_masks_of_an_unlimited_one():
    constraint, letters, *_ = CASES["infinite"]
    lm, draw = lm_of(letters), random.Random(3)
    small, large = (Masks(constraint, lm, [0], frozenset({EOS}), memo=size) for size in (1, 10**6))
    known = [[0]]
    for _ in range(150):
        ids = draw.choice(known)
        masks = small.allowed(ids), large.allowed(ids)
        assert (masks[0] is None) == (masks[1] is None) and (masks[0] is None or masks[0].equal(masks[1]))
        if masks[0] is not None:
            known.append([*ids, draw.choice(masks[0].nonzero()[:, 0].tolist())])
    assert len(small._memo) == 1 and len(large._memo) > 50


def test_white_space_is_free_where_it_is_asked_for():
    lm = lm_of('{}: "ab')
    schema = {"type": "object", "properties": {"a": {"const": "b"}}, "additionalProperties": False}
    for free in (False, True):
        masks, ids = Masks(wb.JSONSchema(schema, whitespace=free), lm, [0], frozenset()), [0]
        ids += [lm.tokenizer.pieces.index(letter) for letter in '{ "a"']
        assert masks.holds(ids) == free
