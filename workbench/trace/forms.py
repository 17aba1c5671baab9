"""The forms of values in a trace: one check for each type of `schema.py`, for single values and for whole columns.

Each takes a value, flags to add the names of numbers to that are not finite (null from then on), and the name of the
place; it returns the value as it is kept, or raises `Damaged` with what is wrong.
"""

from itertools import chain
from typing import Any

from workbench.trace.schema import ENTRIES, NAMES, ROWS, SHORT, Column

__all__ = ["DEEPEST", "SCALARS", "Damaged", "check", "plain", "run_length", "short", "values_of", "writable"]

WHOLE, ID = 2**53, 2**31  # ends of what is a whole number, and a token id
LARGEST = 1e30  # a float of a column beyond this counts as infinite, so that sums and squares stay finite
DEEPEST = 32  # levels of lists and mappings
SCALARS: dict[str, tuple[set[type], str]] = {
    "int": ({int}, "whole numbers"), "id": ({int}, "token ids"), "float": ({int, float}, "numbers"),
    "bool": ({bool}, "true or false"), "text": ({str}, "text"), "short": ({str}, "text"), "name": ({str}, "text"),
}  # fmt: skip
NONE = type(None)
INSIDE = {name: {c.name: c for c in columns} for name, columns in ENTRIES.items()}


class Damaged(Exception):
    """What is wrong with a value."""


def check(column: Column, value: Any, flags: list[str], where: str) -> Any:
    """One value of a declared field; null where the field may be missing."""
    if value is None and not column.required and column.default is None:
        return None
    if column.type in SCALARS:
        return values_of(column, [value], flags, where)[0]
    return FORMS[column.type](value, flags, where)


def values_of(column: Column, values: list, flags: list[str], where: str) -> list:
    """All values of a column of a table."""
    if column.type not in SCALARS:
        form = FORMS[column.type]
        return [None if value is None else form(value, flags, where) for value in values]
    allowed, word = SCALARS[column.type]
    kinds, known = set(map(type, values)), values
    if NONE in kinds:
        if column.required or column.default is not None:
            raise Damaged(f"{where} holds null")
        kinds.discard(NONE)
        known = [value for value in values if value is not None]
    if not kinds <= allowed:
        raise Damaged(f"{where} holds values that are not {word}")
    if not known or column.type in ("text", "bool"):
        return values
    if column.type == "float":
        return values if min(known) >= -LARGEST and max(known) <= LARGEST else _finite(values, flags, where)
    if column.type in ("short", "name"):
        if max(map(len, known)) > SHORT:
            raise Damaged(f"{where} holds a text of more than {SHORT} characters")
    elif min(known) < column.low or max(known) >= (ID if column.type == "id" else WHOLE):
        raise Damaged(f"{where} holds values that are not {word}")
    return values


def _finite(values: list, flags: list[str], where: str) -> list:
    flags.append(where)
    return [value if value is not None and -LARGEST <= value <= LARGEST else None for value in values]


def writable(text: str) -> str:
    """Text as UTF-8 can hold it: lone surrogates, as a prompt may carry them, become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def short(value: Any, flags: list[str], where: str) -> Any:
    """A plain value that is written once and stands for many."""
    if isinstance(value, (list, dict)) or (isinstance(value, str) and len(value) > SHORT):
        raise Damaged(f"{where} is no number and no text of at most {SHORT} characters")
    return plain(value, flags, where)


def plain(value: Any, flags: list[str], where: str, depth: int = DEEPEST) -> Any:
    """A JSON value: numbers of at most 63 bits, at most `DEEPEST` levels, finite floats."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int:
        if not -(2**63) <= value < 2**63:
            raise Damaged(f"{where} holds a number of more than 63 bits")
        return value
    if kind is float:
        if value - value == 0:
            return value
        flags.append(where)
        return None
    if not depth:
        raise Damaged(f"{where} is more than {DEEPEST} levels deep")
    if kind is dict:
        return {key: plain(item, flags, where, depth - 1) for key, item in value.items()}
    return [plain(item, flags, where, depth - 1) for item in value]


def _mapping(value: Any, flags: list[str], where: str) -> dict[str, Any]:
    """Its declared entries by their types, the others plain."""
    if type(value) is not dict:
        raise Damaged(f"{where} is no mapping")
    entries = INSIDE.get(where.rsplit(".", 1)[-1], {})
    return {
        key: check(entries[key], item, flags, f"{where}.{key}") if key in entries else plain(item, flags, where)
        for key, item in value.items()
    }


def _mappings(value: Any, flags: list[str], where: str) -> list:
    if type(value) is not list or len(value) > NAMES:
        raise Damaged(f"{where} is no list of at most {NAMES} mappings")
    return [_mapping(entry, flags, where) for entry in value]


def _declared(value: Any, flags: list[str], where: str) -> Any:
    """A declared thing: a mapping, its settings and those inside are mappings."""
    kept = _mapping(value, flags, where)
    waiting = [kept]
    while waiting:
        inner = waiting.pop()
        if type(inner) is dict:
            if type(inner.get("settings") or {}) is not dict:
                raise Damaged(f"{where} has settings that are no mapping")
            waiting += inner.values()
        elif type(inner) is list:
            waiting += inner
    return kept


def _layered(value: Any, flags: list[str], where: str) -> Any:
    """A whole number, or a list of them."""
    many = value if type(value) is list else [value]
    if not many or set(map(type, many)) != {int} or min(many) < 0 or max(many) >= WHOLE:
        raise Damaged(f"{where} holds values that are not whole numbers")
    return value


def _pair(value: Any, flags: list[str], where: str) -> Any:
    if type(value) is list and len(value) != 2:
        raise Damaged(f"{where} is not one number or two")
    return _layered(value, flags, where)


def _list(value: Any, kinds: set[type], word: str, where: str, low: float = 0, high: float = 0) -> list:
    """A list of values of some types, where `high` is given all within bounds."""
    if type(value) is not list or not set(map(type, value)) <= kinds:
        raise Damaged(f"{where} is no list of {word}")
    if value and high and not (min(value) >= low and max(value) <= high):
        raise Damaged(f"{where} holds values that are no {word}")
    return value


def _ids(value: Any, flags: list[str], where: str) -> list:
    return _list(value, {int}, "token ids", where, 0, ID - 1)


def _texts(value: Any, flags: list[str], where: str) -> list:
    return _list(value, {str}, "texts", where)


def _topk(value: Any, flags: list[str], where: str) -> list:
    """A pair: ids, and as many probabilities."""
    if type(value) is not list or len(value) != 2:
        raise Damaged(f"{where} is no pair of ids and probabilities")
    p = _list(value[1], {int, float}, "finite numbers", where, -LARGEST, LARGEST)
    if len(_ids(value[0], flags, where)) != len(p):
        raise Damaged(f"{where} has not as many probabilities as ids")
    return value


def run_length(value: Any, where: str) -> int:
    """How many positions a value of type `runs` or `place` names."""
    if value is None or type(value) is str:
        return 0
    parts = value if type(value) is list else [value]
    parts = [part if type(part) is list and len(part) == 2 else [part, 1] for part in parts]
    if not all(type(number) is int and 0 <= number < ID for number in chain.from_iterable(parts)):
        raise Damaged(f"{where} names no positions")
    return sum(length for _, length in parts)


def _runs(value: Any, flags: list[str], where: str) -> Any:
    if type(value) is str:
        raise Damaged(f"{where} names no positions")
    return _place(value, flags, where)


def _place(value: Any, flags: list[str], where: str) -> Any:
    run_length(value, where)
    return value


def _rows(value: Any, flags: list[str], where: str) -> Any:
    """The kept rows of a model, columns of `ROWS`; the likeliest token comes first, others may be impossible."""
    if type(value) is not dict or type(value.get("position")) is not list:
        raise Damaged(f"{where} is no mapping of columns")
    known = {c.name: c for c in ROWS}
    for name, column in known.items():
        if name not in value and (column.required or (where == "draft" and name in ("node", "best"))):
            raise Damaged(f"{where} lacks {name}")
    for name, values in value.items():
        column = known.get(name)
        if type(values) is not list or len(values) != len(value["position"]):
            raise Damaged(f"{where}.{name} is of unequal length")
        if column is None:
            value[name] = plain(values, flags, f"{where}.{name}")
        elif column.type != "floats":
            value[name] = values_of(column, values, flags, f"{where}.{name}")
    value["logp"] = [_logs(*pair, flags, where) for pair in zip(value["ids"], value["logp"], strict=True)]
    return value


def _logs(ids: list, logp: Any, flags: list[str], where: str) -> list:
    if type(logp) is not list or not logp or len(logp) != len(ids) or logp[0] is None:
        raise Damaged(f"{where} lacks log-probabilities")
    known = [value for value in logp if value is not None]
    if not set(map(type, known)) <= {int, float} or max(known) > 1 or known[0] < -LARGEST:
        raise Damaged(f"{where} has log-probabilities that are none")
    return logp if min(known) >= -LARGEST else _finite(logp, flags, f"{where}.logp")


FORMS = {
    "any": plain, "declared": _declared, "ids": _ids, "layered": _layered, "mapping": _mapping, "mappings": _mappings,
    "pair": _pair, "place": _place, "rows": _rows, "runs": _runs, "texts": _texts, "topk": _topk,
}  # fmt: skip
