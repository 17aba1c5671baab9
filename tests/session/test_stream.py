"""Tokens as they come, and transformers streamers."""

from types import SimpleNamespace

import pytest
import torch

import workbench as wb

PROMPT = "def add(a, b):\n    return"


@pytest.mark.parametrize("decoder", [None, wb.Speculative()], ids=["plain", "speculative"])
def test_the_tokens_are_those_of_the_run(lm, decoder):
    trace = wb.decode(lm, PROMPT, decoder, max_new_tokens=20)
    rows = list(wb.stream(lm, PROMPT, decoder, max_new_tokens=20))
    assert [row["token_id"] for row in rows] == trace.token_ids and "".join(row["text"] for row in rows) == trace.text
    assert [row["index"] for row in rows] == list(range(20)) and all(row["entropy_raw_nats"] >= 0 for row in rows)
    assert len({row["round"] for row in rows}) == trace.rounds["emitted"].gt(0).sum()


def test_nothing_is_computed_before_it_is_asked_for(lm, monkeypatch):
    calls, honest = [], type(lm)._forward
    monkeypatch.setattr(type(lm), "_forward", lambda self, request: calls.append(1) or honest(self, request))
    tokens = wb.stream(lm, PROMPT, max_new_tokens=50)
    assert not calls
    next(tokens)
    assert len(calls) == 2  # the prompt but its last token, and that one
    next(tokens)
    assert len(calls) == 3


def test_a_transformers_streamer_gets_the_prompt_the_ids_and_the_end(lm):
    class Streamer:
        def __init__(self):
            self.got = []

        def put(self, ids):
            assert isinstance(ids, torch.Tensor)
            self.got.append(ids.tolist())

        def end(self):
            self.got.append("end")

    streamer = Streamer()
    rows = list(wb.stream(lm, PROMPT, wb.Speculative(), streamer=streamer, max_new_tokens=12))
    prompt, *ids, end = streamer.got
    assert prompt == [lm.tokenizer.encode(PROMPT)] and end == "end" and len(ids) == 12
    assert ids == [[row["token_id"]] for row in rows]


def test_whoever_stops_reading_ends_the_run(lm, tmp_path):
    ended = []
    streamer = SimpleNamespace(put=lambda ids: None, end=lambda: ended.append(1))
    tokens = wb.stream(lm, PROMPT, streamer=streamer, out=tmp_path / "run.wb", max_new_tokens=9)
    first = [next(tokens), next(tokens)]
    tokens.close()
    trace = wb.Trace.load(tmp_path / "run.wb")
    assert ended == [1] and trace.end["reason"] == "interrupted"
    assert trace.token_ids == [row["token_id"] for row in first]
    with pytest.raises(wb.BadInput, match="streamer"):
        wb.stream(lm, PROMPT, streamer=3, out=tmp_path / "other.wb")
    assert not (tmp_path / "other.wb").exists()


def test_a_streamer_is_told_of_the_end_whatever_goes_wrong(lm):
    ended = []

    def put(ids):
        if ids.ndim == 1:
            raise KeyError("full")

    tokens = wb.stream(lm, PROMPT, streamer=SimpleNamespace(put=put, end=lambda: ended.append(1)), max_new_tokens=3)
    with pytest.raises(KeyError):
        next(tokens)
    assert ended == [1]


def test_bad_input_is_refused_before_the_first_token(lm):
    with pytest.raises(wb.BadInput, match="the prompt is empty"):
        wb.stream(lm, "")
    with pytest.raises(wb.BadInput, match="streamer: expected a transformers streamer, with put and end, got 'text'"):
        wb.stream(lm, PROMPT, streamer="text")
