"""The text of a run: exact however it ends, goes on or branches off; stop texts and conditions read the joined text."""

import pytest

import workbench as wb
from tests.engine.vocabularies import KINDS, as_bytes
from tests.speculation.tiny import tiny_target
from workbench.cli import main
from workbench.engine.text import decode
from workbench.errors import BadInput
from workbench.trace import Trace

BYTES = ["byte_level", "byte_fallback", "llama_like"]


def made(kind: str):
    tokenizer = KINDS[kind]()
    model = tiny_target(f"text-{kind}", vocabulary=len(tokenizer), context=256).model
    return wb.register_model(f"text-{kind}", model, tokenizer)


@pytest.fixture(scope="module")
def models() -> dict:
    return {kind: made(kind) for kind in KINDS}


def ids_of(lm, text: str) -> list[int]:
    """Its characters as bytes, but for the letter a, which is a token."""
    parts = ([lm.tokenizer.convert_tokens_to_ids("a")] if c == "a" else as_bytes(lm.tokenizer, c) for c in text)
    return [token for part in parts for token in part]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_texts_of_a_run_are_its_tokens_decoded(models, kind):
    """tokens.text joined is the tokenizer's own decoding, special tokens included, whatever a decoder drew."""
    lm = models[kind]
    prompt = lm.tokenizer.encode("a b ab")
    for decoder in (None, wb.Speculative(drafter=wb.CopySpec(ngram=1))):
        trace = wb.decode(lm, prompt, decoder, temperature=3.0, seed=4, max_new_tokens=32)
        before, whole = decode(lm.tokenizer, prompt), decode(lm.tokenizer, prompt + trace.token_ids)
        if kind in ("byte_level", "word_piece"):  # byte fallback takes characters back: see tests/engine/test_text.py
            assert whole.startswith(before) and trace.text == whole[len(before) :]
        assert (
            trace.text
            == "".join(trace.tokens["text"])
            == "".join(t for e in trace.steps() for t in e["tokens"].get("text", []))
        )
        assert trace.tokens["bytes"].sum() == len(trace.text.encode())
    special = lm.tokenizer.all_special_ids[-1]
    assert wb.decode(lm, prompt, force=[special], max_new_tokens=1).text.strip() == lm.tokenizer.decode([special])


@pytest.mark.parametrize("kind", BYTES)
def test_a_run_that_ends_inside_a_character_shows_it(models, kind, tmp_path):
    """What is held back is given at the end, in the last token's text: in tables, events, file and branch; a run that
    goes on, or is branched off there, gives the character itself."""
    lm = models[kind]
    force, lost = ids_of(lm, "aé"), "\ufffd"
    session = wb.Session(lm, "a", force=force[:2], out=tmp_path / "run.wb")
    events = list(session)
    assert session.text == session.trace.text == "a" + lost == decode(lm.tokenizer, force[:2]).strip()
    assert [t for e in events for t in e["tokens"].get("text", [])] == ["a", lost]
    assert list(session.trace.tokens["text"]) == ["a", lost] and session.trace.tokens["bytes"].tolist() == [1, 3]
    assert Trace.load(tmp_path / "run.wb").text == "a" + lost
    assert session.trace.last_rows()[0]["text"] == lost
    session.jump(1)
    assert session.text == "a"
    branch = session.fork(at=2, force=force, max_new_tokens=4)
    branch.run()
    assert branch.text == branch.trace.text == "aé" + branch.trace.tokens["text"][3]


def test_an_interrupted_run_shows_what_it_held(models):
    """So it does where it was interrupted, until it goes on."""
    lm = models["byte_level"]
    session = wb.Session(lm, "a", force=ids_of(lm, "aéa"), max_new_tokens=4)
    session.run(rounds=2)
    assert session.text == session.trace.text == "a"
    session.end("interrupted")
    assert session.text == session.trace.text == "a\ufffd" == "".join(session.trace.tokens["text"])
    session.run()
    assert session.text == session.trace.text == "aéa"


def test_the_command_line_prints_the_whole_text(capsys):
    """Also what only the end adds."""
    half = wb.load("embedded-draft").tokenizer.encode("é")[:1]
    words = ["run", "x", "--model", "embedded-draft", "--force-ids", ",".join(map(str, [*half, *half])), "--quiet"]
    assert main(words) == 0
    assert capsys.readouterr().out == "\ufffd\ufffd\n"


@pytest.mark.parametrize("kind", BYTES)
def test_branches_and_replay_give_the_same_texts(models, kind):
    """A branch begins inside a character as the run did, also where the place is inside a round."""
    lm = models[kind]
    force = ids_of(lm, "a漢a🎉é" * 2)
    for decoder in (None, wb.Speculative(drafter=wb.CopySpec(ngram=1))):
        session = wb.Session(lm, "a b", decoder, force=force)
        session.run()
        assert session.text == "a漢a🎉é" * 2
        for at in (2, 7, 13):
            branch = session.fork(at=at)
            branch.run()
            assert list(branch.trace.tokens["text"]) == list(session.trace.tokens["text"])


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("stop", ["\ufffd", "é", "é漢", "漢a", "漢a\ufffd"])
def test_a_stop_text_is_found_when_it_is_complete(models, kind, stop):
    """Over as many tokens as it takes, at the token that completes it, and never in bytes that are no character yet;
    only new text counts: what the prompt ends with is not looked at."""
    lm, text = models[kind], "aé漢a\ufffdaé"
    for decoder in (None, wb.Speculative(drafter=wb.CopySpec(ngram=1))):
        trace = wb.decode(lm, ids_of(lm, "aé"), decoder, force=ids_of(lm, text), stop=["zz", stop])
        assert trace.text == text[: text.index(stop) + len(stop)] and trace.end["reason"] == "stop"


def test_every_text_that_is_shown_names_its_token(models):
    """`fork(token=…)` with the text of the trace, by every tokenizer, and with a text that another token has there."""
    for lm in models.values():
        prompt = lm.tokenizer.encode("a b ab a")
        session = wb.Session(lm, prompt, temperature=3.0, seed=7, max_new_tokens=10)
        session.run()
        for at, text in enumerate(session.trace.tokens["text"]):
            branch = session.fork(at=at, token=text)
            branch.step()
            assert branch.trace.token_ids[: at + 1] == session.trace.token_ids[: at + 1]
    lm = models["llama_like"]
    session = wb.Session(lm, "a b", force=ids_of(lm, "aa"))
    session.run()
    chosen = {text: session.fork(at=1, token=text).settings.force[1] for text in ("\n", " b", "b")}
    assert chosen == dict(zip(chosen, lm.tokenizer.convert_tokens_to_ids(["<0x0A>", "▁b", "b"]), strict=True))
    for token, says in ((" ab", "' ab' is 2 tokens"), ("漢", "expected exactly one"), (True, "expected an id or text")):
        with pytest.raises(BadInput, match=says):
            session.fork(at=1, token=token)


def test_texts_are_refused_where_there_is_no_tokenizer():
    """A stop text and a condition on texts could never hold: refused before any work, in a branch too; ids still go."""
    lm = tiny_target("without")
    with pytest.raises(BadInput, match="stop: .* has no tokenizer to read 'a' with"):
        wb.decode(lm, [1, 2], stop=["a"])
    session = wb.Session(lm, [1, 2], max_new_tokens=4)
    for until in ("text == 'a'", "entropy > 0 and not (rank > 1 or token != 'b')", "bytes > 3"):
        with pytest.raises(BadInput, match="until: .* has no tokenizer"):
            session.run(until=until)
    with pytest.raises(BadInput, match="stop: "):
        session.fork(at=0, stop="a")
    with pytest.raises(BadInput, match="token: .* has no tokenizer"):
        session.fork(at=0, token="a")
    assert session.length == 0 and session.run(until="rank >= 1")["index"] == 0
    assert len(wb.decode(lm, [1, 2], stop=lambda ids: len(ids) == 3).token_ids) == 3


def test_the_prompts_own_texts_are_the_prompt(models):
    """With `prompt_rows`: the first token's text and those that are recorded make the prompt, its end included."""
    for kind in BYTES:
        lm = models[kind]
        prompt = [*ids_of(lm, "aé漢a"), ids_of(lm, "é")[0]]
        trace = wb.decode(lm, prompt, max_new_tokens=1, prompt_rows=True)
        texts = "".join(trace.prompt_tokens["text"])
        assert decode(lm.tokenizer, prompt[:1]) + texts == trace.prompt == decode(lm.tokenizer, prompt)


def test_marks_of_a_source_are_found_in_the_prompts_text(models):
    """`InputGuided` looks for its marks in the prompt as it reads: with spaces that a lone token would not show."""
    lm = models["llama_like"]
    session = wb.Session(
        lm, "a b éa b", wb.Speculative(drafter=wb.InputGuided(begin=" b é", end=" b")), max_new_tokens=2
    )
    low, high = session.decoder.drafter._source(session.state)
    assert decode(lm.tokenizer, session.prompt_ids[low:high]) == "a"
