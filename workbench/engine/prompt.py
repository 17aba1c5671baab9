"""Prompts as token ids, and new tokens as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.engine.model import LanguageModel
from workbench.engine.vocabulary import ids_read
from workbench.errors import BadInput

__all__ = ["TextStream", "encode_prompt", "single_token"]

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


def encode_prompt(lm: LanguageModel, prompt: Prompt) -> tuple[list[int], str]:
    """Token ids and text of a prompt: text, token ids, or chat messages ({"role", "content"}).

    Raises BadInput where it is empty, has ids outside the vocabulary, leaves no room for a new token, is chat and
    the tokenizer has no template, or is text and there is no tokenizer.
    """
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
        prompt = prompt[0] if prompt and isinstance(prompt[0], list) and len(prompt) == 1 else prompt
    if not isinstance(prompt, str | Sequence) or len(prompt) == 0:
        raise BadInput("the prompt is empty; expected text, token ids or chat messages")
    if isinstance(prompt, str):
        ids = _encode_text(lm, prompt)
    elif isinstance(prompt[0], Mapping):
        ids = _encode_chat(lm, prompt)
    else:
        ids = list(prompt)
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < ids_read(lm) for i in ids):
            raise BadInput(f"prompt ids: expected integers in [0, {ids_read(lm)})")
    if not ids:
        raise BadInput("the prompt is empty: it has no tokens")
    if max(ids) >= ids_read(lm):
        raise BadInput(
            f"the tokenizer of {lm.name!r} gives id {max(ids)}, and the model reads ids below {ids_read(lm)}; resize"
            " its embeddings (resize_token_embeddings), or load the tokenizer that belongs to it"
        )
    if len(ids) >= lm.context:
        raise BadInput(
            f"the prompt has {len(ids)} tokens and {lm.name!r} a context of {lm.context}; expected at most"
            f" {lm.context - 1}, so that a new token fits"
        )
    text = prompt if isinstance(prompt, str) else _decode(lm, ids)
    return ids, text


def _encode_text(lm: LanguageModel, text: str) -> list[int]:
    if lm.tokenizer is None:
        raise BadInput(f"{lm.name!r} has no tokenizer; give the prompt as token ids")
    ids = list(lm.tokenizer.encode(text))
    start = getattr(lm.tokenizer, "bos_token_id", None)
    if start is not None and ids[:2] == [start, start]:
        ids = ids[1:]  # the text brought its own beginning-of-sequence token
    return ids


def _encode_chat(lm: LanguageModel, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    if not all(isinstance(m, Mapping) and "role" in m and "content" in m for m in messages):
        raise BadInput("chat messages: expected a list of {'role': …, 'content': …}")
    if not getattr(lm.tokenizer, "chat_template", None):
        raise BadInput(f"{lm.name!r} has no chat template; give the prompt as text")
    encoded = lm.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=True)
    return list(encoded["input_ids"] if isinstance(encoded, Mapping) else encoded)


def _decode(lm: LanguageModel, ids: Sequence[int]) -> str:
    if lm.tokenizer is None:
        return ""
    return lm.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def single_token(lm: LanguageModel, token: int | str) -> int:
    """The id of a token given as id or text; BadInput where the text is none or several tokens."""
    if isinstance(token, int) and not isinstance(token, bool):
        if not 0 <= token < lm.vocab_size:
            raise BadInput(f"token id {token}: expected one in [0, {lm.vocab_size})")
        return token
    if lm.tokenizer is None:
        raise BadInput(f"{lm.name!r} has no tokenizer; give the token as an id")
    try:
        ids = list(lm.tokenizer.encode(token, add_special_tokens=False))
    except TypeError:
        raise BadInput(f"token: expected an id or text, got {token!r}") from None
    if len(ids) != 1:
        parts = [_decode(lm, [i]) for i in ids]
        raise BadInput(f"{token!r} is {len(ids)} tokens ({parts}); expected exactly one: fork once for each")
    return ids[0]


class TextStream:
    """Text of tokens one by one, by prefix difference: a token that completes a character holds it.

    Keeps the ids since the last complete piece and a little context before them, so that tokenizers which treat the
    first token specially are read right.
    """

    CONTEXT = 6

    def __init__(self, lm: LanguageModel, prompt_ids: Sequence[int]):
        self._lm = lm
        self._ids = list(prompt_ids[-self.CONTEXT :])
        self._before = _decode(lm, self._ids)
        self.joined = ""  # all text so far

    def fork(self) -> "TextStream":
        new = object.__new__(TextStream)
        new._lm, new._ids, new._before, new.joined = self._lm, list(self._ids), self._before, self.joined
        return new

    def push(self, token: int) -> str:
        """The text this token adds; empty while a character is incomplete."""
        if self._lm.tokenizer is None:
            return ""
        self._ids.append(token)
        now = _decode(self._lm, self._ids)
        if now.endswith("\ufffd"):
            return ""
        text = now[len(self._before) :]
        self.joined += text
        self._ids = self._ids[-self.CONTEXT :] if len(self._ids) > 4 * self.CONTEXT else self._ids
        self._before = _decode(self._lm, self._ids) if len(self._ids) <= self.CONTEXT else now
        return text
