"""Every registered member has a row in the tables, and every composition keeps its promise on the toy model."""

import pytest

import workbench as wb
from tests.table import DECODERS, DRAFTERS, INCOMPATIBLE, SHAPES, SPINE, VERIFIERS, compositions
from workbench import declare
from workbench.errors import BadInput

TABLES = {"decoder": DECODERS, "drafter": DRAFTERS, "shape": SHAPES, "verifier": VERIFIERS}
PROMPT = [0, 1, 2, 3, 0, 1, 2]


@pytest.mark.parametrize("family", TABLES)
def test_every_registered_member_has_a_row(family):
    ours = {n for n in declare.names(family) if declare.get(family, n).__module__.startswith("workbench.")}
    assert ours - set(TABLES[family]) == set()


@pytest.mark.parametrize("name", DECODERS)
def test_claims_are_what_the_table_says(name, toy):
    row = DECODERS[name]
    decoder = row.make("toy-draft")
    assert decoder.guarantee(wb.Sampling()) == row.greedy
    if row.sampled:
        assert decoder.guarantee(wb.Sampling(temperature=row.temperature)) == row.sampled
    else:
        with pytest.raises(BadInput):
            wb.decode(toy, PROMPT, decoder, temperature=row.temperature)
    assert wb.decode(toy, PROMPT, decoder, max_new_tokens=3).run["guarantee"] == row.greedy


@pytest.mark.parametrize("pair", INCOMPATIBLE, ids=" with ".join)
def test_what_cannot_go_together_is_refused_with_its_reason(pair, toy):
    first, second = pair
    with pytest.raises(BadInput, match=INCOMPATIBLE[pair]) as caught:
        if second in SHAPES:
            wb.Speculative(drafter=DRAFTERS[first]("toy-draft", ""), shape=SHAPES[second](""))
        else:
            decoder = wb.Speculative(drafter=wb.CopySpec(), verifier=VERIFIERS[first](""))
            wb.decode(toy, PROMPT, decoder, temperature=1.0)
    assert "\n" not in str(caught.value)


def test_all_other_combinations_are_possible(toy):
    drafters, shapes, verifiers = map(len, SPINE)
    refused = sum(drafter in DRAFTERS for drafter, _ in INCOMPATIBLE)
    assert len(dict(compositions("toy-draft"))) == (drafters * shapes - refused) * verifiers


@pytest.mark.parametrize("name", [n for n, row in DECODERS.items() if row.lossless])
def test_lossless_rows_are_greedy_exactly(name, toy):
    for start in range(4):
        expected = wb.decode(toy, [start, *PROMPT], max_new_tokens=20).token_ids
        assert (
            wb.decode(toy, [start, *PROMPT], DECODERS[name].make("toy-draft"), max_new_tokens=20).token_ids == expected
        )


def composed(toy) -> dict:
    return dict(compositions("toy-draft"))


@pytest.mark.parametrize("name", list(dict(compositions("toy-draft"))))
def test_every_composition_keeps_its_promise(name, toy):
    """Greedy: the plain text. Seeded: the plain text of the seed, with top-p too. Rejection: reproducible."""
    decoder = composed(toy)[name]
    assert (
        wb.decode(toy, PROMPT, decoder, max_new_tokens=30).token_ids
        == wb.decode(toy, PROMPT, max_new_tokens=30).token_ids
    )
    if name.endswith("greedy"):
        return
    for seed in range(3):
        settings = dict(temperature=(0.7, 1.0, 1.3)[seed], top_p=(1.0, 0.9, 0.95)[seed], seed=seed, max_new_tokens=30)
        found = wb.decode(toy, PROMPT, decoder, **settings).token_ids
        assert found == wb.decode(toy, PROMPT, decoder, **settings).token_ids
        if name.endswith("seeded"):
            assert found == wb.decode(toy, PROMPT, **settings).token_ids
