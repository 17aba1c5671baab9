"""The worked examples of CONTRIBUTING.md: short, found by name, and as good as they say."""

import re
from pathlib import Path

import pytest

import workbench as wb
from workbench import declare, views
from workbench.dashboard import figures

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"
HOLD = {"ignore_eos": True, "max_new_tokens": 60}


@pytest.fixture
def examples(monkeypatch):
    """The names that the examples define; the last lines of each, which run it on models, are left to the tests."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 5
    for family in ("decoder", "drafter", "policy", "scorer", "view"):
        monkeypatch.setitem(declare.registry.KNOWN, family, dict(declare.registry.KNOWN[family]))
    names: dict = {"__name__": __name__}
    for text in blocks:
        definition, _, use = re.sub(r"\n\n\n((?:lm|trace) = )", r"\n\n\n#use\n\1", text).partition("#use\n")
        assert len(text.strip().splitlines()) < 40 and 2 <= len(use.strip().splitlines()) <= 3
        exec(compile(definition, str(GUIDE), "exec"), names)
        compile(use, str(GUIDE), "exec")
    return names


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 4}], ids=["greedy", "seeded"])
def test_the_drafter_spells_what_plain_decoding_spells(examples, lm, held_out, sampling):
    plain = wb.decode(lm, held_out[1], max_new_tokens=60, **sampling)
    trace = wb.decode(lm, held_out[1], wb.Speculative(drafter=examples["Bigram"]()), max_new_tokens=60, **sampling)
    assert trace.token_ids == plain.token_ids
    assert trace.rounds["accepted"].sum() > 0 and set(trace.drafts["drafter"]) == {"bigram"}


def test_the_drafter_is_found_by_name_and_checks_its_settings(examples):
    assert "bigram" in declare.names("drafter")
    decoder = declare.build("decoder", "speculative", {"drafter": "bigram", "drafter.history": 9})
    assert decoder.drafter.history == 9
    with pytest.raises(wb.BadInput, match="history"):
        examples["Bigram"](history=1)
    with pytest.raises(wb.BadInput, match="drafts one chain"):
        wb.Speculative(drafter=examples["Bigram"](), shape=wb.FixedTree((2, 1)))


def test_the_decoder_keeps_its_guarantee_and_says_what_it_did(examples, lm, held_out):
    """Greedy text is plain decoding's; drawn text is that of the seed until the model is unsure; forced ids stand."""
    decoder = declare.build("decoder", "cautious", {"threshold": "0.5"})
    plain = wb.decode(lm, held_out[1], max_new_tokens=20)
    assert wb.decode(lm, held_out[1], decoder, max_new_tokens=20).token_ids == plain.token_ids
    drawn = {"temperature": 1.0, "seed": 3, **HOLD}
    trace = wb.decode(lm, held_out[1], decoder, **drawn)
    sure = wb.decode(lm, held_out[1], examples["Cautious"](threshold=99.0), **drawn)  # of all it does
    assert trace.run["guarantee"] == "lossy" and (trace.events["controller"] == "cautious").any()
    unsure = trace.tokens["entropy_raw_nats"] > 0.5
    assert unsure.any() and (trace.tokens["rank"][unsure] == 1).all()
    assert sure.token_ids == wb.decode(lm, held_out[1], **drawn).token_ids
    assert wb.decode(lm, held_out[1], decoder, force=[5, 6]).token_ids == [5, 6]


def test_the_scorer_chooses_the_shortest_of_the_samples(examples, lm, held_out):
    drawn = {"temperature": 1.0, "seed": 3, "max_new_tokens": 40}
    trace = wb.decode(lm, held_out[1], wb.BestOf(n=4, scorer=examples["Brevity"](lines=0)), **drawn)
    lines = [one.text.count("\n") for one in wb.decode(lm, held_out[1], n=4, **drawn)]
    assert trace.text.count("\n") == min(lines) < max(lines)


def test_the_cache_policy_drops_and_leaves_speculation_exact(examples, lm, held_out):
    cache = declare.build("policy", "thinning", {"window": 32, "stride": 8})
    plain = wb.decode(lm, held_out[1], cache=cache, **HOLD)
    drafted = wb.decode(lm, held_out[1], wb.Speculative(wb.CopySpec(ngram=1)), cache=cache, **HOLD)
    assert drafted.token_ids == plain.token_ids
    whole = wb.decode(lm, held_out[1], **HOLD)
    last = [trace.cache[trace.cache["round"] == trace.cache["round"].max()] for trace in (plain, whole)]
    assert last[0]["live_slots"].sum() < last[1]["live_slots"].sum() / 2


@pytest.mark.parametrize("run", [{"max_new_tokens": 12}, {"max_new_tokens": 1, "level": "off"}], ids=["12", "1 off"])
def test_the_view_draws_every_run(examples, toy, run):
    trace = wb.decode(toy, [0, 1], wb.Speculative(wb.CopySpec(ngram=1)), **run)
    figure = examples["emitted"](trace)
    assert figure.layout.xaxis.title.text and views.description(figure).endswith(".")
    assert views.as_table(figure)["new text (tokens)"].tolist() == trace.rounds["emitted"].tolist()


def test_the_app_offers_the_view_once_it_is_registered(examples):
    """Behind those of the package, under the title that it gave itself."""
    before = list(figures._offered())
    declare.register("view", "emitted")(examples["emitted"])
    assert list(figures._offered()) == [*before, "new tokens by round"]
