"""Speculative decoding of real text: stop texts, forced ids and transformers' own processors on the embedded pair."""

import pytest

import workbench as wb


def test_stop_texts_and_callables(lm, held_out):
    """The run ends with the token that completes the text, whatever drafted it; the same text either way."""
    texts = wb.decode(lm, held_out[2], max_new_tokens=64).tokens["text"].tolist()
    at = next(i for i, text in enumerate(texts) if i >= 5 and text.strip() and text not in "".join(texts[:i]))
    for decoder in (None, wb.Speculative(), wb.Speculative(drafter=wb.CopySpec())):
        trace = wb.decode(lm, held_out[2], decoder, max_new_tokens=64, stop=["never written", texts[at]])
        assert trace.end["reason"] == "stop" and trace.tokens["text"].tolist() == texts[: at + 1]
        counted = wb.decode(lm, held_out[2], decoder, max_new_tokens=96, stop=lambda ids: len(ids) == 5)
        assert len(counted.token_ids) == 5 and counted.end["reason"] == "stop"


def test_forced_text_is_scored(lm, held_out):
    """`force`: every decoder emits the given ids and reports the same entropies and surprisals."""
    text = wb.decode(lm, held_out[3], max_new_tokens=24, temperature=1.0, seed=8).token_ids
    plain = wb.decode(lm, held_out[3], force=text)
    assert plain.token_ids == text
    for decoder in (wb.Speculative(), wb.Speculative(verifier=wb.Rejection()), wb.Speculative(shape=wb.FixedTree())):
        scored = wb.decode(lm, held_out[3], decoder, force=text, temperature=0.5)
        assert scored.token_ids == text
        for column in ("entropy_raw_nats", "surprisal_nats"):
            assert scored.tokens[column].to_list() == pytest.approx(plain.tokens[column].to_list(), rel=1e-4, abs=1e-4)


def test_pure_processors_see_each_nodes_own_path(lm, held_out):
    """Repetition penalty and no-repeat n-grams of transformers: speculative output equals plain output."""
    from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    processors = [RepetitionPenaltyLogitsProcessor(1.2), NoRepeatNGramLogitsProcessor(3)]
    for temperature in (0.0, 0.8):
        options = {"max_new_tokens": 48, "temperature": temperature, "processors": processors, "seed": 1}
        plain = wb.decode(lm, held_out[8], **options)
        assert plain.token_ids != wb.decode(lm, held_out[8], **{**options, "processors": []}).token_ids
        for decoder in (wb.Speculative(), wb.Speculative(shape=wb.FixedTree()), wb.Speculative(drafter=wb.CopySpec())):
            assert wb.decode(lm, held_out[8], decoder, **options).token_ids == plain.token_ids
