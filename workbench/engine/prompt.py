"""Prompts as token ids: text, ids or chat messages; and one token given as id or text."""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from workbench.engine.model import LanguageModel
from workbench.engine.text import Detokenizer, decode, reader_of, token_of, token_text
from workbench.errors import BadInput, shown
from workbench.values import whole

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
KINDS = "text, token ids or chat messages"


def encode_prompt(lm: LanguageModel, prompt: Prompt) -> tuple[list[int], str]:
    """Token ids and text of a prompt: text, token ids, or chat messages ({"role", "content"}).

    Ids may be integers of any kind, in a list or an array, or what a tokenizer returns for one text.

    Raises BadInput where it is none of these or empty, has ids outside the vocabulary, leaves no place for a new token,
    is chat that the tokenizer has no template for or whose template refuses it, or is text and there is no tokenizer.
    """
    if shape := tuple(getattr(prompt, "shape", ())):
        _fits(lm, int(shape[-1]))  # before a list is made of an array
    given = _plain(prompt)
    if not len(given):
        raise BadInput(f"the prompt is empty; expected {KINDS}")
    if isinstance(given, str):
        ids = encode_text(lm, given)
    elif isinstance(given[0], Mapping):
        ids = _encode_chat(lm, given)
    else:
        ids = _ids(lm, given)
    if not ids:
        raise BadInput("the prompt is empty: it has no tokens")
    _fits(lm, len(ids))
    return ids, given if isinstance(given, str) else decode(lm.tokenizer, ids)


def encode_text(lm: LanguageModel, text: str) -> list[int]:
    """The ids of a text, as `encode_prompt` takes them; BadInput where it cannot be read or is too long."""
    need_tokenizer(lm, "the prompt", text)
    _short(lm, text)
    _readable("the prompt", text)
    try:
        ids = list(lm.tokenizer.encode(text))
    except Exception as error:
        raise BadInput(f"the tokenizer of {lm.name!r} cannot read the prompt: {_said(error)}; change it") from error
    start = getattr(lm.tokenizer, "bos_token_id", None)
    if start is not None and ids[:2] == [start, start]:
        ids = ids[1:]  # the text brought its own beginning-of-sequence token
    return _known(lm, ids)


def prompts_of(given: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """One prompt, or several of them, as a list."""
    given = _row(given) if hasattr(given, "tolist") else given
    if isinstance(given, str | bytes | Mapping | Set) or not isinstance(given, Iterable):
        return [given]
    given = list(given)
    return given if is_several(given) or not given else [given]


def is_several(given: Any) -> bool:
    """Whether this is a list, or an array, of prompts: not text, ids or messages."""
    if hasattr(given, "tolist"):
        return getattr(given, "ndim", 1) > 1
    if not isinstance(given, list | tuple) or not given:
        return False
    message = isinstance(given[0], Mapping) and "input_ids" not in given[0]
    return not message and (whole(given[0]) is None or getattr(given[0], "ndim", 0) > 0)


def need_tokenizer(lm: LanguageModel, what: str, text: Any) -> None:
    """Raise BadInput where a text was given and the model has no tokenizer to read it with."""
    if lm.tokenizer is None:
        raise BadInput(
            f"{what}: {lm.name!r} has no tokenizer to read {shown(text)} with; give the model one, or use token ids"
        )


def single_token(
    lm: LanguageModel, token: int | str, prompt_ids: Sequence[int] = (), new: Sequence[int] = (), at: int = 0
) -> int:
    """The id of a token given as id or text, to stand in the place of new token `at`.

    Its text is what it adds there; of several tokens with that text the one that stands there is meant. Raises BadInput
    where the text is none or several tokens.
    """
    if isinstance(token, str):
        need_tokenizer(lm, "token", token)
        _readable("token", token)
        state = Detokenizer(lm.tokenizer, prompt_ids)
        for known in new[:at]:
            state.push(known)
        found = token_of(lm.tokenizer, token, state, new[at : at + 1])
        if found is None:
            parts = [token_text(lm.tokenizer, i) for i in lm.tokenizer.encode(token, add_special_tokens=False)]
            parts = parts[1:] if "".join(parts[1:]) == token else parts  # without the space that goes before a text
            count = f"is {len(parts)} tokens ({shown(parts)})" if len(parts) > 1 else "is the text of no token here"
            raise BadInput(f"{shown(token)} {count}; expected exactly one: fork once for each, or give its id")
    elif (found := whole(token)) is None:
        raise BadInput(f"token: expected an id or text, got {_named(token)}")
    if not 0 <= found < lm.vocab_size:
        raise BadInput(f"token id {found}: expected one in [0, {lm.vocab_size})")
    return found


def _plain(prompt: Any) -> str | Sequence:
    """The prompt as text or a sequence: arrays as lists, of a tokenizer's output the ids."""
    if isinstance(prompt, Mapping) and "input_ids" in prompt:
        ids, mask = (_row(prompt.get(name)) for name in ("input_ids", "attention_mask"))
        padded = isinstance(ids, list) and isinstance(mask, list) and len(ids) == len(mask) and 0 in mask
        return _plain([token for token, seen in zip(ids, mask, strict=True) if seen] if padded else ids)
    prompt = _row(prompt) if hasattr(prompt, "tolist") else prompt
    if not isinstance(prompt, Sequence) and hasattr(prompt, "ids"):
        return _plain(prompt.ids)  # what the library tokenizers returns
    hint = ""
    if isinstance(prompt, Mapping):
        hint = "; put the message into a list" if "role" in prompt else ""
    elif isinstance(prompt, bytes | bytearray | memoryview):
        hint = "; decode the bytes to text"
    elif isinstance(prompt, Sequence):
        return prompt
    elif hasattr(prompt, "__iter__"):
        hint = "; make a list of it"
    raise BadInput(f"the prompt: expected {KINDS}, got {_named(prompt)}{hint}")


def _row(ids: Any) -> Any:
    """An array as a list, one row of a batch of one as that row."""
    try:
        batch = ids.tolist() if hasattr(ids, "tolist") else ids
    except Exception as error:  # sparse, or on no device
        raise BadInput(f"the prompt: expected {KINDS}, got {_named(ids)}: {_said(error)}") from error
    return batch[0] if isinstance(batch, list) and len(batch) == 1 and isinstance(batch[0], list) else batch


def _ids(lm: LanguageModel, given: Sequence) -> list[int]:
    _fits(lm, len(given))
    ids = [whole(token) for token in given]
    if None in ids:
        at = ids.index(None)
        hint = "; give one prompt at a time" if isinstance(given[at], str | list | tuple) else ""
        raise BadInput(
            f"prompt ids: expected integers in [0, {lm.ids_read}), got {shown(given[at])} at index {at}{hint}"
        )
    return _known(lm, ids)


def _known(lm: LanguageModel, ids: list[int]) -> list[int]:
    """The ids, all of them such as the model reads. Raises BadInput for the first that is not."""
    known = lm.ids_read
    for at, token in enumerate(ids):
        if not 0 <= token < known:
            raise BadInput(
                f"prompt ids: expected integers in [0, {known}), got {token} at index {at}; if the tokenizer gives it,"
                " resize the model's embeddings (resize_token_embeddings) or load the tokenizer that fits"
            )
    return ids


def _encode_chat(lm: LanguageModel, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise BadInput(f"chat messages: expected a list of {{'role': text, 'content': text}}, got {shown(message)}")
        content = message["content"]
        if not (content is None or isinstance(content, str | list | tuple)):
            raise BadInput(f"chat messages: expected 'content' to be text, got {_named(content)}")
    if not getattr(lm.tokenizer, "chat_template", None):
        raise BadInput(f"{lm.name!r} has no chat template; give the prompt as text")
    templated = lm.tokenizer.apply_chat_template
    try:
        text = templated(list(messages), tokenize=False, add_generation_prompt=True)
        if isinstance(text, str):
            _short(lm, text)
            _readable("chat messages", text)
        ids = templated(list(messages), tokenize=True, add_generation_prompt=True)
        return _known(lm, list(ids["input_ids"] if isinstance(ids, Mapping) else ids))
    except BadInput:
        raise
    except Exception as error:  # a template is a program of the model's: it may raise anything
        raise BadInput(
            f"the chat template of {lm.name!r} does not take these messages: {_said(error)}; change them, or give the"
            " prompt as text"
        ) from error


def _fits(lm: LanguageModel, count: int, least: str = "") -> None:
    if count >= lm.context:
        raise BadInput(
            f"the prompt has {least}{count} tokens and {lm.name!r} a context of {lm.context}; expected at most"
            f" {lm.context - 1}, so that a new token fits"
        )


def _short(lm: LanguageModel, text: str) -> None:
    """Raise BadInput for a text that is too long whatever its tokens are, before it is read."""
    if len(text) > lm.context and (share := reader_of(lm.tokenizer).shortest):
        _fits(lm, int(len(text) * share), "at least ")


def _readable(what: str, text: str) -> None:
    """Raise BadInput for a text with half a surrogate pair: it cannot be written down, and no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{what}: {ascii(text[error.start])} at character {error.start} is no character (bytes that are not UTF-8"
            " read as text?); expected text that can be written as UTF-8"
        ) from None


def _named(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} {shown(value)}"


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
