"""Conditions on a row of the trace, such as `entropy > 3 and not bonus`: read with Python's parser, never run.

A condition is made of `and`, `or`, `not`, parentheses, columns and comparisons (`< <= > >= == !=`) of a column, a
number, a quoted text, true or false. A column alone holds where it is there and is not false, 0 or empty. A comparison
with a missing value does not hold, whichever way it asks, `!=` included.
"""

import ast
import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NoReturn

from workbench.errors import BadInput, shown
from workbench.trace.schema import TABLES

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
COMPARE = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
COMPARE |= {ast.Eq: operator.eq, ast.NotEq: operator.ne}
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
MAX_LENGTH, MAX_DEPTH = 1000, 50
NO_VALUE, NO_END = "expected a column, a number or a quoted text", "expected 'and', 'or' or the end"
TOO_DEEP = f"more than {MAX_DEPTH} levels of 'not' and parentheses"

_KINDS = {
    **dict.fromkeys(("int", "id", "float"), "number"),
    **dict.fromkeys(("text", "name", "short"), "text"),
    "bool": "true or false",
}
_TEXT = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*["]""", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])", re.ASCII)
_WORDS = re.compile(rf"(?:{_TEXT.pattern}|{_NUMBER.pattern}|[A-Za-z_]\w*|[<>=!]=|[<>()\s])*", re.ASCII | re.DOTALL)

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
    reader = _Reader(text.strip())
    holds = reader.holds(reader.tree())
    return Condition(reader.text, frozenset(reader.names), holds)


class _Reader:
    """Python's parser gives the structure of a text; nodes that are not listed here are refused."""

    def __init__(self, text: str):
        self.text, self.known = text, columns()
        self.names: set[str] = set()

    def fail(self, what: str, place: int, hint: str = "") -> NoReturn:
        marked = f"{self.text[max(place - 40, 0) : place]}^{self.text[place : place + 40]}"
        raise BadInput(f"condition: {what} at character {place + 1}: {' '.join(marked.split())}{hint}")

    def tree(self) -> ast.expr:
        """The syntax tree; its offsets are those of the text."""
        read = _WORDS.match(self.text).end()
        if read < len(self.text):
            self.fail("cannot read this", read)
        masked = _TEXT.sub(lambda found: f"'{'x' * (len(found[0]) - 2)}'", self.text)
        code = re.sub(r"\b0(?=\d)", "1", re.sub(r"\s", " ", masked))
        levels = accumulate({"(": 1, ")": -1}.get(sign, 0) for sign in code)
        if deep := [place for place, level in enumerate(levels) if level > MAX_DEPTH]:
            self.fail(TOO_DEEP, deep[0])
        try:
            return ast.parse(code, mode="eval").body
        except SyntaxError as error:
            place = error.offset - 1 if error.offset else len(code)
            after_value = re.match(r"(?!and\b|or\b)[\w']", code[place:])
            expected = NO_END if after_value else NO_VALUE
            self.fail(error.msg if "'" in error.msg else expected, place)

    def holds(self, node: ast.expr, depth: int = 0) -> Callable[[Row], bool]:
        if depth > MAX_DEPTH:
            self.fail(TOO_DEEP, node.col_offset)
        match node:
            case ast.BoolOp():
                every = all if isinstance(node.op, ast.And) else any
                parts = [self.holds(part, depth) for part in node.values]
                return lambda row: every(part(row) for part in parts)
            case ast.UnaryOp(op=ast.Not()):
                inner = self.holds(node.operand, depth + 1)
                return lambda row: not inner(row)
            case ast.Compare(ops=[op], comparators=[right]) if type(op) in COMPARE:
                (kind, a), (other, b) = self.value(node.left), self.value(right)
                if kind != other:
                    self.fail(f"this is {other} and is compared with {kind}", right.col_offset)
                return lambda row: _compare(COMPARE[type(op)], a(row), b(row))
            case ast.Compare():
                self.fail("expected one comparison, and another after 'and'", node.comparators[0].end_col_offset)
            case ast.Name() if node.id.lower() not in ("true", "false"):
                read = self.value(node)[1]
                return lambda row: not _missing(read(row)) and bool(read(row))
        self.fail("expected a comparison (< <= > >= == !=)", node.end_col_offset)

    def value(self, node: ast.expr) -> tuple[str, Callable[[Row], Any]]:
        """The kind of a column, a number, a text or a truth value, and what reads it in a row."""
        place = node.col_offset
        word = self.text[place : node.end_col_offset]
        if _NUMBER.fullmatch(word):
            number = float(word) if re.search("[.eE]", word) else int(word)
            return "number", lambda row: number
        if _TEXT.fullmatch(word):
            if odd := re.search(r"\\[^ntr\\'\"]", word.replace("\\\\", "")):
                self.fail(f"unknown escape {odd[0]} in the text", place)
            text = re.sub(r"\\(.)", lambda escape: ESCAPES[escape[1]], word[1:-1])
            return "text", lambda row: text
        if not word.isidentifier():
            self.fail(NO_VALUE, place)
        if word.lower() in ("true", "false"):
            return "true or false", lambda row: word.lower() == "true"
        name = ALIASES.get(word, word)
        if name not in self.known:
            close = difflib.get_close_matches(word, [*self.known, *ALIASES], n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            self.fail(f"unknown name {word[:40]!r}{meant}", place, f"; aliases: {', '.join(ALIASES)}")
        self.names.add(name)
        return self.known[name], lambda row: row.get(name)


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
