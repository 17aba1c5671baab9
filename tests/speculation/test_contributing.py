"""The worked example of CONTRIBUTING.md is a drafter: short, lossless, and found by its name."""

import re
from pathlib import Path

import pytest

import workbench as wb
from workbench import declare

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def example(monkeypatch):
    """The names that the example defines; its last three lines, which run it on models, are left to the tests."""
    (text,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    assert len(text.strip().splitlines()) < 40
    definition, _, use = text.partition("\n\nlm = ")
    assert len(use.strip().splitlines()) == 3
    monkeypatch.setitem(declare.registry.KNOWN, "drafter", dict(declare.registry.KNOWN["drafter"]))
    names: dict = {"__name__": __name__}
    exec(compile(definition, str(GUIDE), "exec"), names)
    return names


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 4}], ids=["greedy", "seeded"])
def test_the_example_spells_what_plain_decoding_spells(example, lm, held_out, sampling):
    plain = wb.decode(lm, held_out[1], max_new_tokens=60, **sampling)
    trace = wb.decode(lm, held_out[1], wb.Speculative(drafter=example["Bigram"]()), max_new_tokens=60, **sampling)
    assert trace.token_ids == plain.token_ids
    assert trace.rounds["accepted"].sum() > 0 and set(trace.drafts["drafter"]) == {"bigram"}


def test_the_example_is_found_by_name_and_checks_its_settings(example):
    assert "bigram" in declare.names("drafter")
    decoder = declare.build("decoder", "speculative", {"drafter": "bigram", "drafter.history": 9})
    assert decoder.drafter.history == 9
    with pytest.raises(wb.BadInput, match="history"):
        example["Bigram"](history=1)
    with pytest.raises(wb.BadInput, match="drafts one chain"):
        wb.Speculative(drafter=example["Bigram"](), shape=wb.FixedTree((2, 1)))
