"""The forms of values in a trace: one check for each type of `schema.py`.

A check takes many values at once: those of one field in many events, those of one column in many rounds. It raises
`Damaged` with what is wrong, and changes nothing; what else it finds is told to `Found`.
"""

import sys
from collections import defaultdict
from functools import partial
from itertools import chain
from typing import Any

from workbench.trace.schema import DERIVED, ENTRIES, KEYS, NAMES, ROWS, SHORT, TABLES, Column

Path = tuple[str, ...]
WHOLE, ID = 2**53, 2**31  # ends of what is a whole number, and a token id
LARGEST = 1e30  # a float of a column beyond this counts as infinite, so that sums and squares stay finite
DEEPEST = 32  # levels of lists and mappings
SCALARS: dict[str, tuple[set[type], str]] = {
    "int": ({int}, "whole numbers"), "id": ({int}, "token ids"), "float": ({int, float}, "numbers"),
    "finite": ({int, float}, "finite numbers"), "bool": ({bool}, "true or false"),
    "text": ({str}, "text"), "short": ({str}, "text"), "name": ({str}, "text"),
}  # fmt: skip
HIGHEST = {"int": WHOLE - 1, "id": ID - 1, "float": LARGEST, "finite": LARGEST}
NONE = type(None)
ANY = Column("", "any", "", "")
FLOAT = Column("", "float", "", "")
INT, TOKEN, FINITE, TEXT = (Column("", kind, "", "", required=True) for kind in ("int", "id", "finite", "text"))
INSIDE = {name: {c.name: c for c in columns} for name, columns in ENTRIES.items()}
LAYERS = {c.name: c for c in TABLES["cache"]}
GROUPS = {name: TABLES["tokens" if name == "prompt" else name] for name in KEYS} | {"target": ROWS, "draft": ROWS}
GROUPS = {name: {c.name: c for c in columns} for name, columns in GROUPS.items()}
NEEDED = {name: [c.name for c in of.values() if c.required and c.name not in DERIVED] for name, of in GROUPS.items()}
NEEDED |= {"prompt": ["token_id", "text"], "canvas": ["position"], "forwards": ["phase"]}
NEEDED |= {"target": ["position", "ids", "logp"], "draft": ["position", "ids", "logp", "node", "best"]}


class Damaged(Exception):
    """What is wrong with a value, and where it stands."""

    def __init__(self, what: str, path: Path = ()):
        super().__init__(f"{'.'.join(path)} {what}".lstrip())


class Found:
    """What a check found that is no damage.

    flags: places of numbers that are not finite, and the largest that is there. names: those of drafters, roles, phases
    and what is not declared. cells: positions that runs name.
    """

    def __init__(self) -> None:
        self.flags: dict[Path, float] = {}
        self.names: set[str] = set()
        self.cells = 0


def check(column: Column, values: list, path: Path, found: Found) -> None:
    """Raise Damaged where values are not as `column` declares; null only where it may be missing."""
    kinds = set(map(type, values))
    if NONE in kinds:
        if column.required or column.default is not None:
            raise Damaged("holds null", path)
        kinds.discard(NONE)
        values = [value for value in values if value is not None]
    if not values:
        return
    if column.type not in SCALARS:
        FORMS[column.type](values, path, found)
        return
    allowed, word = SCALARS[column.type]
    if not kinds <= allowed:
        raise Damaged(f"holds values that are not {word}", path)
    if column.type in ("short", "name") and max(map(len, values)) > SHORT:
        raise Damaged(f"holds a text of more than {SHORT} characters", path)
    if column.type == "name":
        found.names.update(values)
    high = HIGHEST.get(column.type)
    low = -LARGEST if high == LARGEST else column.low
    if high is not None and not (low <= min(values) and max(values) <= high):
        if column.type != "float":
            raise Damaged(f"holds values that are not {word}", path)
        found.flags[path] = LARGEST


def finite(value: Any, largest: float, path: Path = ()) -> Any:
    """A value with null for the numbers at a place in it that are beyond `largest`."""
    if type(value) is list:
        return [finite(item, largest, path) for item in value]
    if type(value) is dict:
        inner = path[1:]
        return {key: finite(item, largest, inner) if path[:1] in ((), (key,)) else item for key, item in value.items()}
    return None if type(value) in (int, float) and not -largest <= value <= largest else value


def writable(text: str) -> str:
    """Text as UTF-8 can hold it: lone surrogates, as a prompt may carry them, become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def run_length(value: Any, where: str) -> int:
    """How many positions a value of type `runs` or `place` names."""
    if value is None or type(value) is str:
        return 0
    parts = value if type(value) is list else [value]
    parts = [part if type(part) is list and len(part) == 2 else [part, 1] for part in parts]
    if not all(type(number) is int and 0 <= number < ID for number in chain.from_iterable(parts)):
        raise Damaged(f"{where} names no positions")
    return sum(length for _, length in parts)


def _any(values: list, path: Path, found: Found, depth: int = DEEPEST) -> None:
    """JSON values: numbers of at most 63 bits, finite floats, and so on inside lists and mappings."""
    for value in values:
        kind = type(value)
        if kind is int and not -(2**63) <= value < 2**63:
            raise Damaged("holds a number of more than 63 bits", path)
        if kind is float and value - value != 0:
            found.flags[path] = sys.float_info.max
        elif kind is list or kind is dict:
            if not depth:
                raise Damaged(f"is more than {DEEPEST} levels deep", path)
            _any(value if kind is list else value.values(), path, found, depth - 1)


def by_name(values: list, path: Path) -> dict[str, list]:
    """What mappings hold under each of their names."""
    whole = defaultdict(list)
    for value in values:
        if type(value) is not dict:
            raise Damaged("is no mapping", path)
        for name, item in value.items():
            whole[name].append(item)
    return whole


def _fields(whole: dict[str, list], known: dict[str, Column], path: Path, found: Found) -> None:
    """Values by name: those that are declared by their types, the others plain."""
    found.names.update(whole.keys() - known.keys())
    for name, values in whole.items():
        check(known.get(name, ANY), values, (*path, name), found)


def _mapping(values: list, path: Path, found: Found) -> None:
    _fields(by_name(values, path), INSIDE.get(path[-1], {}), path, found)


def _mappings(values: list, path: Path, found: Found) -> None:
    if any(type(value) is not list or len(value) > NAMES for value in values):
        raise Damaged(f"is no list of at most {NAMES} mappings", path)
    _mapping([*chain.from_iterable(values)], path, found)


def _declared(values: list, path: Path, found: Found) -> None:
    """Declared things: mappings, their settings and those inside are mappings."""
    _mapping(values, path, found)
    waiting = [*values]
    while waiting:
        inner = waiting.pop()
        if type(inner) is dict:
            if type(inner.get("settings") or {}) is not dict:
                raise Damaged("has settings that are no mapping", path)
            waiting += inner.values()
        elif type(inner) is list:
            waiting += inner


def _columns(values: list, path: Path, found: Found) -> None:
    """Columns of a table, lists of one length."""
    needed, whole = NEEDED[path[-1]], defaultdict(list)
    for columns in values:
        if type(columns) is not dict:
            raise Damaged("no columns")
        for name in needed if columns else ():
            if type(columns.get(name)) is not list:
                raise Damaged(f"{name} is {'no list' if name in columns else 'missing'}")
        for name, cells in columns.items():
            if type(cells) is not list:
                raise Damaged(f"{name} is no list")
            if len(cells) != len(columns[needed[0]]):
                raise Damaged(f"{name} is of unequal length")
            whole[name] += cells
    _fields(whole, GROUPS[path[-1]], path, found)


def _layers(values: list, path: Path, found: Found) -> None:
    """Columns over layers by role: lists, or the one value that all layers have."""
    roles = by_name(values, path)
    found.names.update(roles)
    for role, several in roles.items():
        whole = by_name(several, (*path, role))
        for name, cells in whole.items():
            if any(type(cell) is dict or (type(cell) is str and len(cell) > SHORT) for cell in cells):
                raise Damaged(f"is no number and no text of at most {SHORT} characters", (*path, role, name))
            whole[name] = [value for cell in cells for value in (cell if type(cell) is list else [cell])]
        _fields(whole, LAYERS, (*path, role), found)


def _rows(values: list, path: Path, found: Found) -> None:
    """The kept rows of a model, columns of `ROWS`."""
    _columns(values, path, found)
    if not all(rows and [*map(len, rows["ids"])] == [*map(len, rows["logp"])] for rows in values):
        raise Damaged("lacks log-probabilities", path)


def _floats(values: list, path: Path, found: Found) -> None:
    """Log-probabilities of a row; the likeliest token comes first, others may be impossible."""
    _list(FLOAT, values, path, found)
    firsts = [value[0] for value in values if value]
    if len(firsts) < len(values) or None in firsts:
        raise Damaged("lacks log-probabilities", path)
    if min(firsts) < -LARGEST or max(p for value in values for p in value if p is not None) > 1:
        raise Damaged("has log-probabilities that are none", path)


def _list(column: Column, values: list, path: Path, found: Found) -> None:
    """Lists of what `column` declares."""
    if not all(type(value) is list for value in values):
        raise Damaged(f"is no list of {SCALARS[column.type][1]}", path)
    check(column, [*chain.from_iterable(values)], path, found)


def _topk(values: list, path: Path, found: Found) -> None:
    """Pairs: ids, and as many probabilities."""
    if not all(type(value) is list and len(value) == 2 for value in values):
        raise Damaged("is no pair of ids and probabilities", path)
    ids, p = zip(*values, strict=True)
    _list(TOKEN, ids, path, found)
    _list(FINITE, p, path, found)
    if [*map(len, ids)] != [*map(len, p)]:
        raise Damaged("has not as many probabilities as ids", path)


def _layered(values: list, path: Path, found: Found) -> None:
    """Whole numbers, or lists of them."""
    if [] in values:
        raise Damaged("holds values that are not whole numbers", path)
    _list(INT, [value if type(value) is list else [value] for value in values], path, found)


def _pair(values: list, path: Path, found: Found) -> None:
    if any(type(value) is list and len(value) != 2 for value in values):
        raise Damaged("is not one number or two", path)
    _layered(values, path, found)


def _place(values: list, path: Path, found: Found, text: bool = True) -> None:
    if not text and any(type(value) is str for value in values):
        raise Damaged("names no positions", path)
    found.cells += sum(run_length(value, ".".join(path)) for value in values)


FORMS = {
    "any": _any, "columns": _columns, "declared": _declared, "floats": _floats, "ids": partial(_list, TOKEN),
    "layered": _layered, "layers": _layers, "mapping": _mapping, "mappings": _mappings, "pair": _pair,
    "place": _place, "rows": _rows, "runs": partial(_place, text=False), "texts": partial(_list, TEXT), "topk": _topk,
}  # fmt: skip
