"""A user's text as token ids, read and tokenised once, with the two indexes that drafters look things up in."""

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import BadInput

ORDER = 16  # contexts are sorted by so many tokens
SEPARATOR = 2**31 - 1  # stands before each document; no token has this id

_seen: dict[str, tuple] = {}  # path -> its files and its tokenizer's size when it was read


def look_again(path: str, tokenizer: Any) -> None:
    """Forget what was read of texts that changed since, or with a tokenizer that did; called before a run."""
    root = Path(path).expanduser()
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    facts = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    now = (*facts, len(tokenizer) if hasattr(tokenizer, "__len__") else 0)
    if _seen.get(path, now) != now:
        for table in (corpus_ids, suffix_index, trigrams):
            table.cache_clear()
    _seen[path] = now


@lru_cache(maxsize=4)
def corpus_ids(path: str, tokenizer: Any, megabytes: int) -> np.ndarray:
    """The ids [N] of a text file, or of all text files below a directory in the order of their names, at most so many
    MB of text; a SEPARATOR goes before each document. Hidden files and what is not UTF-8 are left out.

    Raises BadInput where there is no such path, no text in it, or no tokenizer to read it with.
    """
    if not hasattr(tokenizer, "encode"):
        raise BadInput(f"corpus {path!r}: this model has no tokenizer to read it with; load the model with one")
    root, left, parts = Path(path).expanduser(), megabytes * 2**20, []
    if not root.exists():
        raise BadInput(f"corpus: no file or directory {path!r}")
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    for file in files:
        if left <= 0:
            break
        if any(part.startswith(".") for part in file.relative_to(root).parts):
            continue
        try:
            text = file.read_bytes().decode("utf-8")[:left]
        except (UnicodeDecodeError, OSError):
            continue
        if "\0" not in text and text.strip():
            left -= len(text)
            parts += [np.array([SEPARATOR], dtype=np.int32), np.asarray(encode(tokenizer, text), dtype=np.int32)]
    if not parts:
        raise BadInput(f"corpus {path!r}: no UTF-8 text in it")
    return np.concatenate(parts)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids without special tokens; no warning about their number."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return backend.encode(text, add_special_tokens=False).ids
    return list(tokenizer.encode(text, add_special_tokens=False))


@lru_cache(maxsize=4)
def suffix_index(path: str, tokenizer: Any, megabytes: int) -> "SuffixIndex":
    """The index of a corpus, made at the first call in this process."""
    return SuffixIndex(corpus_ids(path, tokenizer, megabytes))


@lru_cache(maxsize=4)
def trigrams(path: str, tokenizer: Any, megabytes: int, width: int) -> "Trigrams":
    """The tri-gram weights of a corpus, made at the first call in this process."""
    return Trigrams(corpus_ids(path, tokenizer, megabytes), width)


class SuffixIndex:
    """A suffix array over the reversed ids, sorted by the first ORDER tokens: all places with the same last tokens lie
    side by side, so that the longest known ending of a text is found by one binary search.

    ids: [N]. order: [N], where in the reversed ids the sorted contexts begin.
    """

    def __init__(self, ids: np.ndarray):
        self.ids = ids
        rank, step, size = np.unique(ids[::-1], return_inverse=True)[1].astype(np.int64), 1, len(ids)
        while step < ORDER:  # prefix doubling
            pairs = rank * (size + 1)
            pairs[: size - step] += rank[step:] + 1
            rank, step = np.unique(pairs, return_inverse=True)[1], 2 * step
        self.order = np.argsort(rank, kind="stable").astype(np.int32)
        self._bytes = ids[::-1].astype(">u4").tobytes() + bytes(4 * ORDER)

    def _context(self, place: int) -> bytes:
        """The ids read backwards from a place on, as bytes that sort as the ids do."""
        start = 4 * int(place)
        return self._bytes[start : start + 4 * ORDER]

    def find(self, tokens: Sequence[int], shortest: int, longest: int) -> tuple[int, np.ndarray]:
        """The longest ending of `tokens` that occurs, of `longest` to `shortest` (at most ORDER) tokens: its length and
        the places in `ids` behind each occurrence. (0, none) where there is none."""
        wanted = np.array(tokens[: -longest - 1 : -1], dtype=">u4").tobytes()
        at = bisect_left(self.order, wanted, key=self._context)
        near = [self._context(place) for place in self.order[max(0, at - 1) : at + 1]]
        length = max((_common(wanted, context) for context in near), default=0)
        if length < shortest:
            return 0, np.empty(0, dtype=np.int64)
        wanted = wanted[: 4 * length]
        low = bisect_left(self.order, wanted, key=self._context)
        high = bisect_left(self.order, wanted + b"\xff" * 4, lo=low, key=self._context)
        return length, len(self.ids) - self.order[low:high].astype(np.int64)

    def following(self, places: np.ndarray, length: int) -> list[list[int]]:
        """What follows in the ids, at most `length` tokens each, up to the end of the document."""
        found = [self.ids[place : place + length].tolist() for place in places]
        return [run[: run.index(SEPARATOR)] if SEPARATOR in run else run for run in found]


def _common(a: bytes, b: bytes) -> int:
    """Common tokens at the beginning of two byte strings."""
    length = 0
    while length + 4 <= len(a) and a[length : length + 4] == b[length : length + 4]:
        length += 4
    return length // 4


class Trigrams:
    """For every pair of tokens of a corpus its `width` commonest successors and the shares they have."""

    def __init__(self, ids: np.ndarray, width: int):
        a, b, c = (ids[i : len(ids) - 2 + i].astype(np.int64) for i in range(3))
        whole = (a != SEPARATOR) & (b != SEPARATOR) & (c != SEPARATOR)
        pairs, inverse, sizes = np.unique((a << 32 | b)[whole], return_inverse=True, return_counts=True)
        triples, counts = np.unique(inverse.astype(np.int64) << 32 | c[whole], return_counts=True)
        pair, successor = triples >> 32, triples & (2**32 - 1)
        order = np.lexsort((successor, -counts, pair))
        pair, successor, counts = pair[order], successor[order], counts[order]
        starts = np.searchsorted(pair, np.arange(len(pairs)))
        kept = np.arange(len(pair)) - starts[pair] < width
        self._pairs = pairs
        self._starts = np.searchsorted(pair[kept], np.arange(len(pairs) + 1))
        self._successors = successor[kept].astype(np.int32)
        self._weights = (counts[kept] / (sizes[pair[kept]] + 1)).astype(np.float32)

    def get(self, a: int, b: int) -> tuple[list[int], list[float]] | None:
        """Successors of a pair, the commonest first, with their weights count / (count of the pair + 1)."""
        wanted = a << 32 | b
        at = int(np.searchsorted(self._pairs, wanted))
        if at == len(self._pairs) or self._pairs[at] != wanted:
            return None
        low, high = self._starts[at], self._starts[at + 1]
        return self._successors[low:high].tolist(), self._weights[low:high].tolist()
