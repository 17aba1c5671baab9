"""Text is exact: token by token it is the tokenizer's own decoding, and a token's text names the token."""

import random

import pytest

from tests.campaigns.text import check
from tests.engine.vocabularies import (
    CHARACTERS,
    KINDS,
    READERS,
    added,
    as_bytes,
    byte_fallback,
    byte_level,
    llama_like,
    sequence,
    texts_of,
    word_piece,
)
from workbench.engine import text as module
from workbench.engine.text import Detokenizer, decode, reader_of, token_of, token_text

ALL = pytest.mark.parametrize("kind", sorted(KINDS))


@ALL
def test_the_texts_joined_are_the_tokenizers_own_decoding(kind):
    """`''.join(texts)` is the decoding of prompt and output without that of the prompt: random tokens, prompts that end
    anywhere (inside a character too), and every kind read in the way that suits it."""
    assert reader_of(KINDS[kind]()).kind == READERS[kind]
    found = check(kind, 100)
    assert found["differing"] == 0
    assert kind == "word_piece" or found["held"] > 10 < found["crossed"]


@ALL
def test_where_only_decoding_is_known_the_texts_are_the_same(kind, monkeypatch):
    """A tokenizer of none of the known kinds is read through windows, which begin at places that change nothing."""
    tokenizer, draw = KINDS[kind](), random.Random(kind)
    monkeypatch.setattr(module, "reader_of", lambda tokenizer: unknown)
    unknown = module.Reader(tokenizer, len(tokenizer))
    unknown.kind, unknown.waits = "whole", kind != "word_piece"
    shortened = 0
    for _ in range(12):
        ids = sequence(draw, kind, len(tokenizer), 90)
        if READERS[kind] == "pieces":  # a run with a wrong byte is taken back as a whole
            ids = tokenizer.encode("ab" * 20 + "".join(draw.choices([*CHARACTERS, " ", "a"], k=40)))
        state = Detokenizer(tokenizer, ids[:5])
        texts = [state.push(token) for token in ids[5:]]
        shortened += len(state._way.ids) < len(ids)
        assert "".join(texts) + state.rest == added(tokenizer, ids[:5], ids[5:])
    assert shortened


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "llama_like"])
@pytest.mark.parametrize("character", ["漢", "🎉", "\ufffd"])
def test_the_token_that_completes_a_character_holds_it(kind, character):
    """Also a real U+FFFD (EF BF BD), which looks like an incomplete one; and characters that one run of bytes joins."""
    tokenizer = KINDS[kind]()
    ids, start = as_bytes(tokenizer, character), [tokenizer.convert_tokens_to_ids("a")]
    expected = [""] * (len(ids) - 1) + [character]
    assert texts_of(tokenizer, start, ids * 9) == expected * 9
    assert texts_of(tokenizer, start + ids, ids) == expected


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "llama_like"])
def test_a_character_across_the_prompts_end_belongs_to_the_output(kind):
    """Completed, it is the completing token's; never completed, its U+FFFD stays the prompt's. Also where the prompt
    ends in a run of bytes with characters before it, complete ones included: the run is read as a whole."""
    tokenizer = KINDS[kind]()
    a = tokenizer.convert_tokens_to_ids("a")
    first, *others = as_bytes(tokenizer, "漢")
    assert texts_of(tokenizer, [a, first], [*others, a]) == ["", "漢", "a"]
    assert texts_of(tokenizer, [a, first], [a]) == ["a"]
    for size in range(1, 7):
        prompt, more = [a, *([first, *others] * 2)[:size]], [first, *others][size % 3 or 3 :]
        for new in ([*more, a], [*more, first, *others, a], [a, first], [first], [first, a], [others[0], others[0]]):
            if size % 3 != 2 or new[0] != others[0]:  # there it completes a character, see the next test
                assert "".join(texts_of(tokenizer, prompt, new)) == added(tokenizer, prompt, new), (prompt, new)


@pytest.mark.parametrize("kind", ["byte_level", "llama_like"])
def test_bytes_that_begin_no_character_are_known_at_once(kind):
    """Every first byte with the second and third ones at the bounds of what may follow: overlong forms, halves of
    surrogate pairs, beyond the last character."""
    tokenizer = KINDS[kind]()
    names = {byte: f"<0x{byte:02X}>" for byte in range(256)}
    names = names if kind == "llama_like" else {byte: letter for letter, byte in module.ALPHABET.items()}
    ids = tokenizer.convert_tokens_to_ids([names[byte] for byte in range(256)])
    bounds, start = (0x41, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC2), [tokenizer.convert_tokens_to_ids("a")]
    for first in range(0xBF, 0x100):
        for second in bounds:
            for third in bounds[:: 7 if first % 16 else 1]:
                new = [ids[byte] for byte in (first, second, third)]
                if kind == "byte_level" or "\ufffd" in bytes((first, second)).decode(
                    errors="replace"
                ):  # see the next test
                    assert "".join(texts_of(tokenizer, start, new)) == added(tokenizer, start, new), new


def test_what_was_given_out_stays():
    """Byte fallback shows a run with a wrong byte as U+FFFD alone: characters of it that were complete are kept, the
    rest is one U+FFFD a byte, as the tokenizer has it; a text token ends the run."""
    tokenizer = llama_like()
    a, good, bad = tokenizer.convert_tokens_to_ids("a"), [3 + b for b in "é漢".encode()], 3 + 0xFF
    assert decode(tokenizer, [a, *good, bad, good[0], a]) == "a" + 7 * "\ufffd" + "a"
    assert texts_of(tokenizer, [a], [*good, bad, good[0], a, *good]) == [
        *("", "é", "", "", "漢"), "\ufffd", "\ufffd", "a", *("", "é", "", "", "漢"),
    ]  # fmt: skip


@pytest.mark.parametrize("make", [byte_fallback, llama_like])
def test_the_space_that_is_dropped_at_the_start_is_dropped_there_alone(make):
    """A prompt may have no text yet: what a tokenizer strips at the start is found by its own decoding."""
    tokenizer = make()
    space, a, line = (tokenizer.convert_tokens_to_ids(piece) for piece in ("▁", "▁a", "<0x20>"))
    for prompt in ([], [space], [space, space], [line]):
        for new in ([a, a], [space, space, a], [line, line, a], [space, line, a]):
            assert "".join(texts_of(tokenizer, prompt, new)) == added(tokenizer, prompt, new), (prompt, new)


@ALL
def test_a_fork_goes_on_by_itself(kind):
    """Forks of one state give the texts they would give alone, inside a character too; the state stays as it was."""
    tokenizer, draw = KINDS[kind](), random.Random(1)
    for _ in range(20):
        first, second, third = (sequence(draw, kind, len(tokenizer), 9) for _ in range(3))
        state = Detokenizer(tokenizer, first)
        for token in second[:5]:
            state.push(token)
        texts = []
        for ids in (third, second, third):
            fork = state.fork()
            texts.append(([fork.push(token) for token in ids], fork.rest, fork.recent(10**6)))
        assert texts[0] == texts[2]
        alone = Detokenizer(tokenizer, first)
        assert [alone.push(token) for token in [*second[:5], *third]][-len(third) :] == texts[0][0]
        assert alone.recent(10**6) == texts[0][2] and texts[0][2].endswith(alone.recent(3))


@ALL
def test_a_tokens_text_names_the_token(kind):
    """Every token, behind every token: its text there leads back to it, or to another one with that very text."""
    tokenizer, draw = KINDS[kind](), random.Random(2)
    for _ in range(60):
        ids = sequence(draw, kind, len(tokenizer), 8)
        state = Detokenizer(tokenizer, ids[:1])
        for token in ids[1:]:
            before = state.fork()
            text = state.push(token)
            assert token_of(tokenizer, text, before, [token]) == token
            if text and "\ufffd" not in text:
                found = token_of(tokenizer, text, before)
                assert before.fork().push(found) == text


def test_a_text_names_the_token_that_adds_it_where_it_stands():
    """With and without a leading space, as a byte, as the last byte of a character, and where no token has it."""
    t = llama_like()
    state = Detokenizer(t, t.encode("a b"))
    named = {text: t.convert_ids_to_tokens(token_of(t, text, state)) for text in (" a", "a", "b", "\n", "</s>")}
    assert named == {" a": "▁a", "a": "a", "b": "b", "\n": "<0x0A>", "</s>": "</s>"}
    assert token_of(t, "漢", state) is None and token_of(t, "a b", state) is None and token_of(t, "", state) is None
    state.push(3 + 0xE6), state.push(3 + 0xBC)
    assert token_of(t, "漢", state) == 3 + 0xA2
    assert token_text(t, 3 + 0xA2) == "\ufffd" and token_text(t, t.convert_tokens_to_ids("▁a")) == " a"


def test_a_tokenizer_that_decodes_in_its_own_way_is_believed():
    """The pieces are used only where they agree with `decode`: a subclass may add to it."""

    class Shouting(type(word_piece())):
        def decode(self, ids, **options):
            return super().decode(ids, **options).upper()

    made = byte_level()
    shouting = Shouting(tokenizer_object=made.backend_tokenizer)
    assert reader_of(shouting).kind == "whole"
    a = shouting.convert_tokens_to_ids("a")
    assert texts_of(shouting, [a], [a, a]) == ["A", "A"]


def test_the_cost_of_a_token_does_not_grow_with_the_text(monkeypatch):
    """No push decodes more than a window, however long the text: windows are cut where that changes nothing."""
    sizes = []
    monkeypatch.setattr(module, "decode", lambda tokenizer, ids: sizes.append(len(ids)) or decode(tokenizer, ids))
    for kind in KINDS:
        tokenizer = KINDS[kind]()
        state = Detokenizer(tokenizer, [3] * 500)
        sizes.clear()
        for token in random.Random(3).choices(range(3, len(tokenizer)), k=400):
            state.push(token)
        assert max(sizes, default=0) <= 4 * module.WINDOW, kind
        assert len(sizes) < 2000
