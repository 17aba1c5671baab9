"""Prompts as people have them: taken, or refused in one line that says what they are."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BatchEncoding

import workbench as wb
from tests.engine.vocabularies import byte_level, llama_like, word_piece
from workbench.engine.prompt import encode_prompt, prompts_of
from workbench.errors import BadInput

IDS = [5, 9, 12, 7]
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def model(tokenizer=None, vocabulary: int = 300, context: int = 64) -> SimpleNamespace:
    """What `encode_prompt` reads of a model."""
    sizes = {"vocab_size": vocabulary, "ids_read": vocabulary, "context": context}
    return SimpleNamespace(name="m", tokenizer=tokenizer, **sizes)


def with_chat(template: str | None = CHAT) -> SimpleNamespace:
    tokenizer = byte_level()
    tokenizer.chat_template = template
    return model(tokenizer)


TAKEN = {
    "list": IDS,
    "tuple": tuple(IDS),
    "range": (range(5, 9), [5, 6, 7, 8]),
    "numpy integers": list(np.array(IDS, dtype=np.uint8)),
    "tensor scalars": list(torch.tensor(IDS)),
    "array": np.array(IDS),
    "one row": torch.tensor([IDS]),
    "series": pd.Series(IDS),
    "what a tokenizer returns": BatchEncoding({"input_ids": IDS, "attention_mask": [1] * 4}),
    "a row of it, padded": BatchEncoding({"input_ids": [[0, *IDS]], "attention_mask": [[0, 1, 1, 1, 1]]}),
    "tensors of it": {"input_ids": torch.tensor([IDS]), "attention_mask": torch.ones(1, 4)},
}


@pytest.mark.parametrize("name", TAKEN)
def test_ids_of_any_library_are_ids(name):
    """Integers of numpy, torch and pandas, and a tokenizer's own output; they come out as Python's."""
    given, expected = TAKEN[name] if isinstance(TAKEN[name], tuple) and name == "range" else (TAKEN[name], IDS)
    ids, text = encode_prompt(model(), given)
    assert ids == expected and all(type(i) is int for i in ids) and text == ""


def test_what_tokenizers_returns_is_taken():
    """The `Encoding` of a bare `tokenizers` tokenizer."""
    tokenizer = byte_level()
    encoding = tokenizer.backend_tokenizer.encode("ab é")
    assert encode_prompt(model(tokenizer), encoding) == (encoding.ids, "ab é")


KINDS = "expected text, token ids or chat messages, got "
REFUSED = {
    "none": (None, f"{KINDS}None"),
    "number": (5, f"{KINDS}int 5"),
    "fraction": (0.5, f"{KINDS}float 0.5"),
    "true": (True, f"{KINDS}bool True"),
    "no text": ("", "the prompt is empty"),
    "no ids": ([], "the prompt is empty"),
    "empty array": (np.array([], dtype=int), "the prompt is empty"),
    "set": ({1, 2}, rf"{KINDS}set {{1, 2}}; make a list of it"),
    "empty set": (set(), f"{KINDS}set"),
    "generator": ((i for i in IDS), f"{KINDS}generator .*; make a list of it"),
    "bytes": (b"ab", f"{KINDS}bytes b'ab'; decode the bytes to text"),
    "message": ({"role": "user", "content": "hi"}, f"{KINDS}dict .*; put the message into a list"),
    "mapping": ({"a": 1}, f"{KINDS}dict"),
    "scalar": (torch.tensor(5), f"{KINDS}int 5"),
    "meta": (torch.ones(3, device="meta"), f"{KINDS}Tensor"),
    "meta scalars": (list(torch.ones(2, dtype=int, device="meta")), "got tensor.*meta.* at index 0"),
    "fractions": ([1.0, 2.0], r"integers in \[0, 300\), got 1.0 at index 0"),
    "array of fractions": (np.array([1.5]), "got 1.5 at index 0"),
    "truths": ([1, True], "got True at index 1"),
    "array of truths": (np.array([True]), "got True at index 0"),
    "tensor truths": (list(torch.tensor([True])), r"got tensor\(True\) at index 0"),
    "numpy truths": ([np.bool_(True)], "got .*True.* at index 0"),
    "several": ([IDS, IDS], r"got \[5, 9, 12, 7\] at index 0; give one prompt at a time"),
    "one in a list": ([IDS], r"got \[5, 9, 12, 7\] at index 0; give one prompt at a time"),
    "rows": (np.array([IDS, IDS]), "at index 0; give one prompt at a time"),
    "texts": (["a", "b"], "got 'a' at index 0; give one prompt at a time"),
    "nothing among them": ([1, None], "got None at index 1"),
    "a message among them": ([1, {"role": "user", "content": ""}], "at index 1"),
    "negative": ([1, -1], r"integers in \[0, 300\), got -1 at index 1"),
    "foreign": ([300], "got 300 at index 0"),
    "huge": ([10**400], "at index 0"),
    "too many": ([1] * 64, "has 64 tokens and 'm' a context of 64; expected at most 63"),
    "a long array": (np.broadcast_to(np.int64(1), 10**12), "has 1000000000000 tokens"),
    "no tokenizer": ("ab", "has no tokenizer to read 'ab' with"),
    "tokenizer's of nothing": (BatchEncoding({"input_ids": []}), "the prompt is empty"),
    "tokenizer's of two": (BatchEncoding({"input_ids": [IDS, IDS]}), "one prompt at a time"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_prompt_is_named(name):
    """One line with the type or value that was found and what to do; "empty" is said of what is empty only."""
    given, says = REFUSED[name]
    with pytest.raises(BadInput, match=says) as caught:
        encode_prompt(model(), given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert ("empty" in str(caught.value)) == ("empty" in says)


@pytest.mark.parametrize("text", ["a\udcffb", "\ud800"])
def test_half_a_surrogate_pair_is_no_text(text):
    """Bytes of a command line that are not UTF-8 arrive so; the tokenizer would raise a TypeError."""
    lm = with_chat()
    for prompt in (text, [{"role": "user", "content": text}]):
        with pytest.raises(BadInput, match=r"'\\ud[0-9a-f]{3}' at character \d+ is no character"):
            encode_prompt(lm, prompt)


def test_ids_that_the_model_does_not_have_are_refused_whoever_made_them():
    """A tokenizer with more tokens than the model, and text that the toy's has no letters for."""
    with pytest.raises(BadInput, match=r"expected integers in \[0, 100\), got 263 at index 0"):
        encode_prompt(model(llama_like(), vocabulary=100), "b")
    with pytest.raises(BadInput, match=r"integers in \[0, 4\), got -7 at index 0"):
        wb.decode(wb.ToyModel(4), "Z")


def test_a_tokenizer_that_fails_says_so_in_one_line():
    """Whatever it raises."""

    class Failing(type(byte_level())):
        def encode(self, text, **options):
            raise RuntimeError("first\nsecond")

    lm = model(Failing(tokenizer_object=byte_level().backend_tokenizer))
    with pytest.raises(BadInput, match="the tokenizer of 'm' cannot read the prompt: first second"):
        encode_prompt(lm, "ab")


def test_chat_messages_are_templated():
    """The messages' text as the template has it, read once, by lists of any mapping."""
    lm = with_chat()
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "é"}]
    ids, text = encode_prompt(lm, messages)
    assert text == "<user>a<assistant>é<a>" and ids == lm.tokenizer.encode(text, add_special_tokens=False)
    assert encode_prompt(lm, tuple(messages))[0] == ids


BAD_CHATS = {
    "no role": ([{"content": "a"}], "expected a list of {'role': text, 'content': text}"),
    "role": ([{"role": 5, "content": "a"}], "expected a list of {'role': text"),
    "no content": ([{"role": "user"}], "expected a list of {'role': text"),
    "content": ([{"role": "user", "content": 5}], "expected 'content' to be text, got int 5"),
    "no message": ([{"role": "user", "content": "a"}, "b"], "expected a list of .*, got 'b'"),
}
BAD_TEMPLATES = {
    "none": (None, "has no chat template; give the prompt as text"),
    "refusing": (
        "{{ raise_exception('roles must\nalternate') }}",
        "does not take these messages: roles must alternate",
    ),
    "unsafe": ("{{ ''.__class__.__mro__ }}", "does not take these messages: .*unsafe"),
    "broken": ("{% for %}", "does not take these messages"),
    "adding": ("{{ messages[0]['content'] + 5 }}", "does not take these messages"),
}


@pytest.mark.parametrize("name", BAD_CHATS)
def test_messages_of_another_shape_are_refused(name):
    messages, says = BAD_CHATS[name]
    with pytest.raises(BadInput, match=says):
        encode_prompt(with_chat(), messages)


@pytest.mark.parametrize("name", BAD_TEMPLATES)
def test_a_template_that_fails_says_so_in_one_line(name):
    """A template is a program of the model's: jinja's sandbox, its own refusals and plain mistakes come as BadInput."""
    template, says = BAD_TEMPLATES[name]
    with pytest.raises(BadInput, match=says) as caught:
        encode_prompt(with_chat(template), [{"role": "user", "content": "a"}])
    assert "\n" not in str(caught.value)


LONG = 1_000_000


@pytest.mark.parametrize("make", [byte_level, llama_like])
def test_a_text_that_is_too_long_is_refused_unread(make, monkeypatch):
    """No token is longer than the longest one, so a text beyond the context times that is too long whatever it says."""
    lm = model(make())
    lm.tokenizer.chat_template = CHAT
    longest = max(map(len, lm.tokenizer.get_vocab()))
    monkeypatch.setattr(type(lm.tokenizer), "encode", lambda *_, **__: pytest.fail("it was read"))
    for prompt in ("a" * LONG, "a" * (longest * 64), [{"role": "user", "content": "a" * LONG}]):
        with pytest.raises(BadInput, match="has at least .* tokens and 'm' a context of 64"):
            encode_prompt(lm, prompt)


def test_a_text_whose_tokens_fit_is_never_refused_for_its_length():
    """The bound holds for every text: none is set where text may vanish, as in a word that is unknown as a whole, white
    space that a normalizer or a special token swallows; and where characters are composed it is so much wider."""
    from tokenizers import AddedToken, normalizers

    assert len(encode_prompt(model(word_piece()), "x" * 10_000)[0]) == 1
    swallowing = byte_level()
    swallowing.add_special_tokens({"additional_special_tokens": [AddedToken("<m>", lstrip=True)]})
    assert len(encode_prompt(model(swallowing), " " * 10_000 + "<m>")[0]) == 1
    stripping = byte_level()
    stripping.backend_tokenizer.normalizer = normalizers.Strip()
    assert len(encode_prompt(model(stripping), " " * 10_000 + "a")[0]) == 1
    composing = byte_level()
    longest = max(map(len, composing.get_vocab()))
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    with pytest.raises(BadInput, match="at least"):
        encode_prompt(model(composing), "a" * (4 * longest * 64))
    with pytest.raises(BadInput, match="the prompt has [0-9]"):
        encode_prompt(model(composing), "a" * (4 * longest * 63))


def test_one_prompt_and_several_are_told_apart():
    """As `compare` and `lossless` take them: text, ids of any library, messages; or several of any of these."""
    message, encoding = {"role": "user", "content": "a"}, BatchEncoding({"input_ids": IDS})
    for one in ("ab", IDS, list(np.array(IDS)), [message], encoding, 5, None):
        assert prompts_of(one) == [one]
    for several in (["a", "b"], [IDS, IDS], [[message]], [encoding], [np.array(IDS)], [["a", "b"]], []):
        assert [*map(str, prompts_of(several))] == [*map(str, several)]
    assert prompts_of(np.array(IDS)) == [IDS] and prompts_of(np.array([IDS, IDS])) == [IDS, IDS]
    assert prompts_of(pd.Series(["a", "b"])) == ["a", "b"] == prompts_of(x for x in "ab")
