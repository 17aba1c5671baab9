"""A draft whose matrix is narrower or wider than the target's: the text stays the target's, no id is out of range."""

import math

import pytest
import torch

import workbench as wb
from tests.engine.small import PROMPT, random_model, words
from workbench.engine.vocabulary import known_only, widened
from workbench.models.adapter import wrap

WIDTHS = {"narrower": 56, "wider": 80}
TARGET = 72  # its last ids are nobody's words


@pytest.fixture(scope="module", params=WIDTHS)
def pair(request):
    """A target, and a draft of another width, with one tokenizer; the draft is registered as "other-width"."""
    tokenizer = words(54)
    wb.register_model(
        "other-width", random_model(seed=1, vocab_size=WIDTHS[request.param], num_hidden_layers=1), tokenizer
    )
    return wb.register_model("width-72", random_model(vocab_size=TARGET), tokenizer)


DECODERS = {
    "seeded": lambda: wb.Speculative(drafter=wb.DraftModel("other-width")),
    "pearl": lambda: wb.Pearl(model="other-width"),
    "fused": lambda: wb.Speculative(drafter=wb.Fuse(wb.TokenRecycling(), wb.DraftModel("other-width"))),
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_seeded_text_is_the_targets_whatever_the_drafts_width(decoder, pair):
    """With ids in the prompt and in the text that a narrow draft has no row for; a processor made for the target's
    width; level `full`, which keeps the draft's rows as well."""
    bias = torch.linspace(0, 4, TARGET)  # towards the last ids
    run = dict(
        max_new_tokens=10, temperature=1.2, top_k=20, ignore_eos=True, seed=1, processors=[lambda ids, s: s + bias]
    )
    prompt = [*PROMPT, 71, 9, 70]
    plain = wb.decode(pair, prompt, **run)
    trace = wb.decode(pair, prompt, DECODERS[decoder](), level="full", **run)
    assert trace.token_ids == plain.token_ids
    assert max(trace.token_ids) >= 56, "no id that the narrow draft lacks: this shows nothing"
    drafts = trace.drafts
    assert len(drafts) and drafts["token_id"].max() < TARGET
    assert "".join(trace.tokens["text"]) == trace.text
    wb.Trace(trace.log).summary()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rejection_works_on_the_common_ids(temperature, pair):
    """It ended in an IndexError as soon as the target wrote an id that the draft does not have."""
    decoder = wb.Speculative(drafter=wb.DraftModel("other-width"), verifier="rejection")
    trace = wb.decode(pair, [*PROMPT, 71], decoder, max_new_tokens=12, temperature=temperature, ignore_eos=True, seed=2)
    assert len(trace.token_ids) == 12 and len(trace.drafts)
    q = trace.drafts["q"].dropna()
    assert len(q) and ((q > 0) & (q <= 1 + 1e-6)).all()
    if not temperature:
        plain = wb.decode(pair, [*PROMPT, 71], max_new_tokens=12, ignore_eos=True)
        assert trace.token_ids == plain.token_ids


def test_an_id_the_draft_lacks_is_not_drafted_on():
    """The round whose last token it is has no drafts; the next one drafts again."""
    wb.register_model("narrow", random_model(seed=1, vocab_size=56, num_hidden_layers=1), words(54))
    lm = wrap(random_model(vocab_size=TARGET), words(54))
    forced = [3, 71, 4, 5]
    session = wb.Session(lm, PROMPT, wb.Speculative(drafter=wb.DraftModel("narrow")), force=forced, max_new_tokens=4)
    session.run()
    at = {r["length"]: r["drafted"] for r in _rounds(session.trace)}
    assert at[len(PROMPT) + 2] == 0 and any(at[n] for n in at if n != len(PROMPT) + 2)


def _rounds(trace) -> list[dict]:
    """Per round: the text's length before it, and how many tokens it drafted."""
    found, length = [], len(trace.run["prompt_ids"])
    for _, row in trace.rounds.iterrows():
        if row["mode"] != "prefill":
            found.append({"length": length, "drafted": int(row["drafted"])})
        length += int(row["emitted"])
    return found


def test_a_wide_drafts_distribution_is_cut_before_it_is_filtered():
    """Cut afterwards, a draft whose likeliest token lies beyond the target's ids had no distribution left: NaN."""
    logits = torch.zeros(1, 8)
    logits[0, 7] = 9.0
    dist = wb.Sampling(temperature=1.0, top_k=1).dist(widened(logits, 6), lambda row: [])
    assert math.isclose(dist.scores.exp().sum().item(), 1.0, abs_tol=1e-6) and dist.scores.shape == (1, 6)
    narrow = known_only(wb.Sampling(temperature=1.0).dist(widened(logits, 11), lambda row: []), 8)
    torch.testing.assert_close(narrow.raw[:, :8], logits.log_softmax(-1))
    assert (narrow.raw[:, 8:] == -torch.inf).all()


def test_device_rounds_read_what_the_host_does(monkeypatch, pair):
    """The host's own rounds where the last id is unknown to the draft, clamped ids elsewhere: one text."""
    run = dict(max_new_tokens=8, temperature=1.5, ignore_eos=True, seed=4)
    texts = []
    for where in ("host", "device"):
        monkeypatch.setenv("WORKBENCH_ROUND", where)
        decoder = wb.Speculative(drafter=wb.DraftModel("other-width"), shape=wb.FixedTree((2, 1)))
        texts.append(wb.decode(pair, [*PROMPT, 71], decoder, **run).token_ids)
    assert texts[0] == texts[1] == wb.decode(pair, [*PROMPT, 71], **run).token_ids


@pytest.mark.parametrize("begin", ["small", "large"])
def test_two_writers_of_one_text_write_what_both_can_hold(begin, pair):
    """Entropy-adaptive decoding commits what the small model writes: never an id that the target has no row for."""
    decoder = wb.EntropyAdaptive(small="other-width", threshold=3.9, dwell=1, window=1, begin=begin, monitor="small")
    trace = wb.decode(pair, [*PROMPT, 71], decoder, max_new_tokens=12, temperature=2.0, ignore_eos=True, seed=5)
    assert len(trace.token_ids) == 12 and max(trace.token_ids) < TARGET
    assert {"target", "draft"} == set(trace.tokens["model"])


@pytest.mark.parametrize("case", ["other-words", "no-tokenizer", "shifted"])
def test_two_vocabularies_are_refused_before_any_work(case):
    """Same width or not: ids must mean the same where both know them."""
    lm = wrap(random_model(), words(60))
    tokenizer, width = {
        "other-words": (wb.ToyModel().tokenizer, 64),
        "no-tokenizer": (None, 80),
        "shifted": (words(60), 64),
    }[case]
    if case == "shifted":
        tokenizer.add_tokens(["w99"])
        lm.tokenizer.add_tokens(["w98"])
    wb.register_model("foreign", wrap(random_model(seed=1, vocab_size=width), tokenizer))
    for decoder in (wb.Speculative(drafter=wb.DraftModel("foreign")), wb.Pearl(model="foreign")):
        with pytest.raises(wb.BadInput, match="different vocabularies"):
            wb.Session(lm, PROMPT, decoder)
    grown = words(60)
    grown.add_tokens(["<mark>"])
    wb.register_model("grown", wrap(random_model(seed=1, vocab_size=68), grown))
    plain = wrap(random_model(), words(60))
    assert (
        len(wb.decode(plain, PROMPT, wb.Speculative(drafter=wb.DraftModel("grown")), max_new_tokens=3).token_ids) == 3
    )


def test_a_looked_up_text_is_drafted_as_far_as_the_target_has_its_ids(tmp_path):
    """The tokenizer may know more than the matrix has rows for."""
    (tmp_path / "corpus.txt").write_text("w41 w5 w9 w20 w70 w21 " * 4)
    lm = wrap(random_model(), words(80))
    for drafter in (wb.SuffixRetrieval, wb.ADED):
        decoder = wb.Speculative(drafter=drafter(corpus=str(tmp_path / "corpus.txt")))
        trace = wb.decode(lm, [33, 41, 5, 9], decoder, max_new_tokens=6, ignore_eos=True)
        assert len(trace.token_ids) == 6 and 20 in set(trace.drafts["token_id"])
    with pytest.raises(wb.BadInput, match=r"\[0, 64\), got 70.*resize_token_embeddings"):
        wb.decode(lm, "w5 w70", max_new_tokens=2)
