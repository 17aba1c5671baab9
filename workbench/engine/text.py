"""Token ids as text, one by one, and a text back as a token: the one place that knows how tokens make text.

The text of a sequence is the tokenizer's own decoding of the whole of it, special tokens included and nothing cleaned
up. A token's text is what that decoding gains by it, so the texts joined are the decoding of prompt and output without
that of the prompt; a token that completes a character holds it, those before it hold nothing of it. Two things follow:

- Where the decoding of both does not begin with that of the prompt, the output's text is what comes after their common
  beginning. So it is where the prompt ends inside a character, which its own text shows as U+FFFD: a token that
  completes the character adds it; where it never is completed, that U+FFFD stays the prompt's.
- What was given out stays. A tokenizer with byte fallback decodes a run of byte tokens as a whole and, where the run is
  no UTF-8, as one U+FFFD a byte; of such a run, characters that were complete before its first wrong byte are kept.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from os.path import commonprefix
from typing import Any

LOST = "\ufffd"  # stands for bytes that are no character, or not one yet
WINDOW, LEAST, MOST = 24, 6, 12  # tokens decoded anew for each token, where only `decode` is known; kept when they grow
CHARACTER = 4  # bytes at most, and characters at most that a normalizer puts together as one (NFC)
PLAIN = (*range(33, 127), *range(161, 173), *range(174, 256))  # bytes that byte-level vocabularies write as they are
OTHERS = sorted({*range(256)} - {*PLAIN})
SEQUENCES = ("decoders", "normalizers", "pretokenizers")  # of steps, as `tokenizers` writes them
ALPHABET = {chr(byte): byte for byte in PLAIN} | {chr(256 + n): byte for n, byte in enumerate(OTHERS)}


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The tokenizer's own text of a whole sequence; empty where there is no tokenizer."""
    if tokenizer is None:
        return ""
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def token_text(tokenizer: Any, token: int) -> str:
    """The text of one token in the middle of a text; U+FFFD where it is a part of a character."""
    piece = "" if tokenizer is None else reader_of(tokenizer).piece(token) or ""
    return piece.decode("utf-8", "replace") if isinstance(piece, bytes) else piece


def reader_of(tokenizer: Any) -> "Reader":
    """The reader of a tokenizer, made once while it stays as it is."""
    return _reader(tokenizer, len(tokenizer) if hasattr(tokenizer, "__len__") else 0)


class Reader:
    """What the tokens of one tokenizer are made of.

    kind: `bytes`: every token is bytes, the text is their UTF-8 (byte-level BPE). `pieces`: a token is a text or one
    byte, and a run of bytes is UTF-8 as a whole (byte fallback). `whole`: nothing is known but `decode`; so it is where
    the tokenizer's own decoding of a sample does not agree.
    waits: kind `whole` only, whether U+FFFD at the end may be a character that is not complete.
    """

    def __init__(self, tokenizer: Any, size: int):
        self.tokenizer, self.size = tokenizer, size
        self._pieces: dict[int, bytes | str | None] = {}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        parts = _parts(backend.decoder) if backend is not None else None
        names = [part["type"] for part in parts or ()]
        self.waits = parts is None or "ByteLevel" in names or "ByteFallback" in names
        self.kind = "bytes" if "ByteLevel" in names else "pieces" if "ByteFallback" in names else "whole"
        if not self._agrees():
            self.kind = "whole"
            self._pieces.clear()

    def piece(self, token: int) -> bytes | str | None:
        """What a token stands for: its bytes, or else its text; None where there is no such token."""
        if token not in self._pieces:
            if self.kind == "whole":
                found = self._beside(token)
            elif (name := self.name(token)) is None:
                found = None
            elif self.kind == "bytes":
                found = bytes(ALPHABET[c] for c in name) if all(c in ALPHABET for c in name) else name.encode()
            else:
                found = _byte(name) or self._beside(token)
            self._pieces[token] = found
        return self._pieces[token]

    def name(self, token: int) -> str | None:
        """The token as the vocabulary writes it; None where it does not say."""
        name = self.tokenizer.convert_ids_to_tokens(token) if hasattr(self.tokenizer, "convert_ids_to_tokens") else None
        return name if isinstance(name, str) else None

    def find(self, text: str, held: bytes = b"") -> Iterator[int]:
        """Tokens that may add `text` where the bytes `held` wait for their character, the likeliest first."""
        ids = list(self.tokenizer.encode(text, add_special_tokens=False))
        if len(ids) == 1:
            yield ids[0]
        if text:
            yield from self._tokens.get(text, ())
            found = text.encode()
            yield from self._tokens.get(found.removeprefix(held), ()) if found.startswith(held) else ()

    @cached_property
    def shortest(self) -> float | None:
        """Tokens that a character of a text takes at least; None where text may vanish in the tokenizer, as in an
        unknown word or in white space that is dropped."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if self.kind == "whole" or backend is None or type(backend.model).__name__ not in ("BPE", "Unigram"):
            return None
        names = self.tokenizer.get_vocab()
        every = ALPHABET if self.kind == "bytes" else [f"<0x{byte:02X}>" for byte in range(256)]
        fallback = self.kind == "bytes" or getattr(backend.model, "byte_fallback", False)
        added = backend.get_added_tokens_decoder().values()
        if not fallback or any(one not in names for one in every) or any(one.lstrip or one.rstrip for one in added):
            return None
        first, then = _parts(backend.normalizer), _parts(backend.pre_tokenizer)
        if first is None or then is None or not all(map(_keeps_text, (*first, *then))):
            return None
        share = CHARACTER if any(part["type"] == "NFC" for part in first) else 1
        return 1 / (share * max(map(len, names)))

    def _beside(self, token: int) -> str:
        """What a token adds behind another one: at the start of a text its space may be dropped."""
        before, text = self._anchor
        both = decode(self.tokenizer, [*before, token])
        return both[len(text) :] if both.startswith(text) else decode(self.tokenizer, [token])

    @cached_property
    def _anchor(self) -> tuple[list[int], str]:
        """A token that is a plain word, with its text; nothing where there is none."""
        special = set(getattr(self.tokenizer, "all_special_ids", ()))
        for token in range(self.size):
            if token not in special and _byte(self.name(token) or "") is None:
                text = decode(self.tokenizer, [token])
                if text.isalnum():
                    return [token], text
        return [], ""

    @cached_property
    def _tokens(self) -> dict[bytes | str, list[int]]:
        """Piece -> the tokens that it is."""
        found: dict[bytes | str, list[int]] = {}
        for token in range(self.size):
            if (piece := self.piece(token)) is not None:
                found.setdefault(piece, []).append(token)
        return found

    def _agrees(self) -> bool:
        """Whether the tokenizer decodes a sample of all tokens, and of those that were added, as their pieces say."""
        if self.kind == "whole":
            return True
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        sample = [*range(0, self.size, max(1, self.size // 64)), *sorted(added)[:64]]
        if self.kind == "bytes":
            whole = b"".join(self.piece(token) or b"" for token in sample).decode("utf-8", "replace")
            return decode(self.tokenizer, sample) == whole
        before, text = self._anchor
        sample = [token for token in sample if isinstance(self.piece(token), str)]
        return bool(before) and decode(self.tokenizer, before + sample) == text + "".join(map(self.piece, sample))


_reader = lru_cache(maxsize=8)(Reader)


class Detokenizer:
    """The text of new tokens one by one, behind those of a prompt; see the module. Costs as much for every token.

    A part of a decoder's state: `fork` gives one that goes on by itself and costs nothing.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int] = ()):
        reader = None if tokenizer is None else reader_of(tokenizer)
        self._way = reader and (_Whole if reader.kind == "whole" else _Bytes)(reader, prompt_ids)
        self._texts: tuple | None = None  # (those before, the last one): forks share what they have in common
        self._last = ""  # what the last token added

    def fork(self) -> "Detokenizer":
        new = _copied(self)
        new._way = self._way and _copied(self._way)
        return new

    def push(self, token: int) -> str:
        """The text that this token adds; empty while a character is incomplete, and where there is no tokenizer."""
        self._last = text = self._way.add(token) if self._way else ""
        if text:
            self._texts = (self._texts, text)
        return text

    def completes(self, stop: str) -> bool:
        """Whether the last token completed this text, anywhere in the new text and over as many tokens as it takes."""
        size = len(self._last) + len(stop) - 1
        return bool(self._last) and stop in self.recent(size)[-size:]

    @property
    def rest(self) -> str:
        """What the last token's text lacks if the text ends here: U+FFFD for a character that is not complete."""
        return self._way.rest if self._way else ""

    @property
    def held(self) -> bytes:
        """The bytes that wait for their character, where they are known."""
        return self._way.held if self._way else b""

    def recent(self, count: int) -> str:
        """The last characters of the new text, at least `count` of them where there are so many."""
        parts, texts = [], self._texts
        while texts is not None and count > 0:
            texts, text = texts
            parts.append(text)
            count -= len(text)
        return "".join(reversed(parts))


def token_of(tokenizer: Any, text: str, after: Detokenizer, likely: Sequence[int] = ()) -> int | None:
    """The token whose text, behind what was decoded so far, is just this one; None where there is none.

    Of several it is the first of `likely`, else the one that the tokenizer itself takes, else that of the lowest id.
    """
    for candidates in (likely, reader_of(tokenizer).find(text, after.held)):
        for token in candidates:
            state = after.fork()
            added = state.push(token)
            if text in (added, added + state.rest):
                return token
    return None


def _copied(one: Any) -> Any:
    """A shallow copy; `copy.copy` takes ten times as long."""
    new = object.__new__(type(one))
    vars(new).update(vars(one))
    return new


class _Bytes:
    """Tokens whose bytes are known: a character is complete or not, whatever it looks like."""

    def __init__(self, reader: Reader, prompt_ids: Sequence[int]):
        self.reader = reader
        self.stream = reader.kind == "bytes"
        self.held = b""  # bytes of a character that is not complete
        self.broken = False  # the run of byte tokens is no UTF-8
        run = self._tail(prompt_ids)
        self.shown = LOST  # what the prompt's own text shows for `held`; while there is any, its run is held as a whole
        self.ahead = 0  # bytes of the run that are complete characters of the prompt
        (self._stream if self.stream else self._run)(run)
        self.ahead = 0 if self.stream or self.held or self.broken else len(run)
        self.shown = ""
        self.shown = self.rest
        seen = self.stream or decode(reader.tokenizer, prompt_ids[-64:]) or decode(reader.tokenizer, prompt_ids)
        self.start = None if seen else tuple(prompt_ids)  # all tokens, as long as no text has come of them

    def _tail(self, ids: Sequence[int]) -> bytes:
        """The last bytes of a prompt: enough for a character, or a whole run of byte tokens."""
        tail = b""
        for token in reversed(ids):
            piece = self.reader.piece(token)
            if isinstance(piece, str) or (self.stream and len(tail) >= CHARACTER):
                break
            tail = (piece or b"") + tail
        return tail

    def add(self, token: int) -> str:
        piece = self.reader.piece(token)
        if piece is None:
            return ""  # decoding passes over it
        text = self._stream(piece) if self.stream else self._run(piece)
        if text:
            same = len(commonprefix((text, self.shown)))
            text, self.shown, self.ahead = text[same:], self.shown[same:] if same == len(text) else "", 0
        if self.start is not None:
            self.start += (token,)
            if text and (text := decode(self.reader.tokenizer, self.start)):
                self.start = None
        return text

    @property
    def rest(self) -> str:
        if not self.held:
            return ""
        lost = LOST if self.stream else LOST * (self.ahead + len(self.held))
        return lost.removeprefix(self.shown)

    def _stream(self, piece: bytes) -> str:
        data = self.held + piece
        text, used = _utf8(data, "replace")
        self.held = data[used:]
        return text

    def _run(self, piece: bytes | str) -> str:
        if isinstance(piece, str):
            lost = LOST * (self.ahead + len(self.held)) if self.held else ""
            self.held, self.broken, self.ahead = b"", False, 0
            return lost + piece
        data, self.held = self.held + piece, b""
        if self.broken:
            return LOST
        try:
            text, used = _utf8(data, "strict")
        except UnicodeDecodeError:
            self.broken = True
            return LOST * (self.ahead + len(data))
        if used < len(data) and self.shown:
            text, used = "", 0
        self.held = data[used:]
        return text


class _Whole:
    """Tokens of which only the decoding is known: that of a few last ones, before and after each."""

    held = b""

    def __init__(self, reader: Reader, prompt_ids: Sequence[int]):
        self.reader, self.limit, self.waited = reader, WINDOW, 0
        self.ids = list(prompt_ids[-WINDOW:])
        if not (now := decode(reader.tokenizer, self.ids)):
            self.ids = list(prompt_ids)
            now = decode(reader.tokenizer, self.ids)
        self.given = now[: len(now) - self._unsure(now)]
        self.shown = now[len(self.given) :]  # what the prompt's own text shows for a character that is not complete
        self.rest = ""

    def add(self, token: int) -> str:
        self.ids = [*self.ids, token]
        now = decode(self.reader.tokenizer, self.ids)
        start = len(commonprefix((now, self.given + self.shown)))
        end = max(start, len(now) - self._unsure(now, token))
        self.waited = self.waited + 1 if start < len(self.given) else 0
        if 0 < self.waited < CHARACTER:
            end = start  # text was taken back: until the next tokens say what it is
        text, self.rest = now[start:end], now[end:]
        if text:
            self.given, self.shown = now[:end], ""
        if len(self.ids) > self.limit:
            self._shorten(now)
        return text

    def _unsure(self, text: str, token: int | None = None) -> int:
        """How many U+FFFD at the end may be a character that is not complete."""
        if not self.reader.waits or (token is not None and LOST in (self.reader.name(token) or "")):
            return 0
        return min(WINDOW, len(text) - len(text.rstrip(LOST)))

    def _shorten(self, now: str) -> None:
        """Begin later, at a token from which on the text reads the same."""
        if now == self.given:
            for count in range(LEAST, MOST):
                text = decode(self.reader.tokenizer, self.ids[-count:])
                if text and now.endswith(text):
                    self.ids, self.given, self.limit = self.ids[-count:], text, WINDOW
                    return
        self.limit = 2 * len(self.ids)


def _utf8(data: bytes, errors: str) -> tuple[str, int]:
    """The characters that are complete, and how many bytes they are; what is left may become one."""
    text, used = codecs.utf_8_decode(data, errors, False)
    if data[used : used + 1] == b"\xed" and data[used + 1 : used + 2] >= b"\xa0":  # half a surrogate pair never will
        return codecs.utf_8_decode(data, errors, True)
    return text, used


def _parts(component: Any) -> list[dict] | None:
    """The steps of a normalizer, pre-tokenizer or decoder of `tokenizers`; None where they cannot be told."""
    if component is None:
        return []
    try:
        parts = [json.loads(component.__getstate__())]
    except Exception:  # one that is written in Python
        return None
    while key := next((key for key in SEQUENCES if any(key in part for part in parts)), None):
        parts = [inner for part in parts for inner in part.get(key, [part])]
    return parts


def _keeps_text(part: dict) -> bool:
    """Whether a step leaves every character of a text, one for one (NFC aside)."""
    if part["type"] == "Replace":
        return len(part["content"]) >= len(part["pattern"].get("String", part["content"] + " "))
    if part["type"] == "Split":
        return part["behavior"] != "Removed"
    return part["type"] in ("ByteLevel", "Digits", "Metaspace", "NFC", "Prepend")


def _byte(name: str) -> bytes | None:
    """The byte that a piece such as <0x0A> stands for."""
    found = re.fullmatch("<0x([0-9A-Fa-f]{2})>", name)
    return bytes.fromhex(found[1]) if found else None
