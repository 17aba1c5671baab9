"""Conditions on a row of the trace, such as `entropy > 3 and not bonus`: a small language of its own, never `eval`.

    condition := and ("or" and)*        and := not ("and" not)*        not := "not" not | "(" condition ")" | test
    test      := value (("<" | "<=" | ">" | ">=" | "==" | "!=") value)?
    value     := number | 'text' | "text" | true | false | column | alias       (in texts \\n \\t \\r \\\\ \\' \\")

A value alone must be a column: it holds where the column is there and is not false, 0 or empty. A comparison with a
missing value does not hold, whichever way it asks, `!=` included.
"""

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from workbench.errors import BadInput, shown
from workbench.trace.schema import TABLES

__all__ = ["ALIASES", "Condition", "columns", "parse"]

ALIASES = {
    "entropy": "entropy_raw_nats",
    "entropy_sampled": "entropy_sampled_nats",
    "varentropy": "varentropy_nats2",
    "surprise": "surprisal_nats",
    "surprisal": "surprisal_nats",
    "p": "p_raw",
    "id": "token_id",
    "token": "text",
    "bytes_cached": "cache_bytes",
    "bits": "bits_per_element",
    "ms": "total_ms",
}
OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
MAX_LENGTH = 1000
MAX_DEPTH = 50

_KINDS = {
    **dict.fromkeys(("int", "id", "float"), "number"),
    **dict.fromkeys(("text", "name", "short"), "text"),
    "bool": "true or false",
}
_PIECE = re.compile(
    r"""\s*(?:
      (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<name>[A-Za-z_]\w*)
    | (?P<sign><=|>=|==|!=|<|>|\(|\))
    )""",
    re.VERBOSE,
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Condition:
    """A parsed condition; calling it on a row (column -> value) says whether it holds there.

    text: what was parsed; names: the columns it reads, aliases resolved.
    """

    text: str
    names: frozenset[str]
    _holds: Callable[[Row], bool] = field(repr=False, compare=False)

    def __call__(self, row: Row) -> bool:
        return self._holds(row)


def columns() -> dict[str, str]:
    """The columns a condition may read and their kinds: `number`, `text` or `true or false`."""
    both = (*TABLES["tokens"], *TABLES["rounds"])
    return {column.name: _KINDS[column.type] for column in both if column.type in _KINDS}


def parse(text: str) -> Condition:
    """The condition that `text` writes down.

    Raises BadInput, with the place marked by `^`, for what is no condition, for unknown names, and for comparisons
    that could never hold because a text is compared with a number.
    """
    if not isinstance(text, str) or not text.strip():
        raise BadInput(f"condition: expected text such as 'entropy > 3 and rank > 1', got {shown(text)}")
    if len(text) > MAX_LENGTH:
        raise BadInput(f"condition: expected at most {MAX_LENGTH} characters, got {len(text)}; pass a callable instead")
    parser = _Parser(text)
    holds = parser.either(0)
    if parser.piece is not None:
        parser.fail("expected 'and', 'or' or the end")
    return Condition(text.strip(), frozenset(parser.names), holds)


@dataclass(frozen=True)
class _Value:
    """One side of a comparison: `read` gives its value in a row."""

    read: Callable[[Row], Any]
    kind: str
    place: int
    is_column: bool


class _Parser:
    """Recursive descent over the pieces of one text, one method for each line of the grammar."""

    def __init__(self, text: str):
        self.source = text
        self.known = columns()
        self.names: set[str] = set()
        self.end = 0
        self.advance()

    def advance(self) -> None:
        """Move to the next piece; `piece` is None at the end of the text."""
        match = _PIECE.match(self.source, self.end)
        rest = self.source[self.end :]
        self.place = self.end + len(rest) - len(rest.lstrip())
        if match is None:
            self.piece, self.kind = None, ""
            if rest.strip():
                self.fail("cannot read this")
            return
        self.kind, self.piece, self.end = match.lastgroup, match[match.lastgroup], match.end()

    def takes(self, piece: str) -> bool:
        """Whether the current piece is this word or sign; if so, move on."""
        if self.kind not in ("name", "sign") or self.piece != piece:
            return False
        self.advance()
        return True

    def fail(self, what: str, place: int | None = None, hint: str = "") -> NoReturn:
        place = self.place if place is None else place
        start = max(place - 40, 0)
        shown = " ".join(f"{self.source[start:place]}^{self.source[place : place + 40]}".split())
        raise BadInput(f"condition: {what} at character {place + 1}: {shown}{hint}")

    def either(self, depth: int) -> Callable[[Row], bool]:
        parts = [self.both(depth)]
        while self.takes("or"):
            parts.append(self.both(depth))
        return parts[0] if len(parts) == 1 else lambda row: any(part(row) for part in parts)

    def both(self, depth: int) -> Callable[[Row], bool]:
        parts = [self.negated(depth)]
        while self.takes("and"):
            parts.append(self.negated(depth))
        return parts[0] if len(parts) == 1 else lambda row: all(part(row) for part in parts)

    def negated(self, depth: int) -> Callable[[Row], bool]:
        if depth > MAX_DEPTH:
            self.fail(f"more than {MAX_DEPTH} levels of 'not' and parentheses")
        if self.takes("not"):
            inner = self.negated(depth + 1)
            return lambda row: not inner(row)
        if self.takes("("):
            inner = self.either(depth + 1)
            if not self.takes(")"):
                self.fail("expected ')'")
            return inner
        return self.test()

    def test(self) -> Callable[[Row], bool]:
        left = self.value()
        if self.kind != "sign" or self.piece not in OPERATORS:
            if not left.is_column:
                self.fail("expected a comparison (< <= > >= == !=)")
            return lambda row: not _missing(left.read(row)) and bool(left.read(row))
        compare = OPERATORS[self.piece]
        self.advance()
        right = self.value()
        if left.kind != right.kind:
            self.fail(f"this is {right.kind} and is compared with {left.kind}", right.place)
        return lambda row: _compare(compare, left.read(row), right.read(row))

    def value(self) -> _Value:
        piece, kind, place = self.piece, self.kind, self.place
        if kind == "name" and piece.lower() in ("true", "false"):
            value, kind = piece.lower() == "true", "true or false"
        elif kind == "number":
            value = float(piece) if re.search("[.eE]", piece) else int(piece)
        elif kind == "text":
            value = self.unescape(piece[1:-1], place)
        elif kind == "name" and piece not in ("and", "or", "not"):
            return self.column(piece, place)
        else:
            self.fail("expected a column, a number or a quoted text")
        self.advance()
        return _Value(lambda row: value, kind, place, is_column=False)

    def unescape(self, text: str, place: int) -> str:
        def plain(match: re.Match) -> str:
            if match[1] not in ESCAPES:
                self.fail(f"unknown escape {match[0]} in the text", place)
            return ESCAPES[match[1]]

        return re.sub(r"\\(.)", plain, text, flags=re.DOTALL)

    def column(self, piece: str, place: int) -> _Value:
        name = ALIASES.get(piece, piece)
        if name not in self.known:
            close = difflib.get_close_matches(piece, [*self.known, *ALIASES], n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            self.fail(f"unknown name {piece[:40]!r}{meant}", hint=f"; aliases: {', '.join(ALIASES)}")
        self.names.add(name)
        self.advance()
        return _Value(lambda row: row.get(name), self.known[name], place, is_column=True)


def _compare(compare: Callable[[Any, Any], bool], left: Any, right: Any) -> bool:
    return not _missing(left) and not _missing(right) and bool(compare(left, right))


def _missing(value: Any) -> bool:
    """None, NaN and pandas' NA, which is the one value that is not equal to itself nor unequal."""
    if value is None:
        return True
    if isinstance(value, (str, bool, int)):
        return False
    try:
        return math.isnan(value)
    except TypeError:
        return True
