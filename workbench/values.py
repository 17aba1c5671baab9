"""Values as people and files give them: what is taken for an integer, a number, a choice, and what is not.

Scalars of numpy and torch count as Python's own. True is no number, 1.7 no integer; an integer fits 64 bits.
"""

import math
import operator
from typing import Any

from workbench.errors import BadInput, shown

LONGEST_LIST = 4096


def items(where: str, value: Any, wanted: str = "a list of integers", most: int = LONGEST_LIST) -> list:
    """The items of a list, tuple, range or array of one dimension, at most so many: a range may be endless."""
    if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple | range):
        raise BadInput(f"{where}: expected {wanted}, got {shown(value)}")
    found = list(value[: most + 1])
    if len(found) > most:
        raise BadInput(f"{where}: expected {wanted}, of at most {most} entries, got {shown(value)}")
    return found


def plain(value: Any) -> Any:
    """Scalars of numpy and torch as Python's own; other values as they are."""
    try:
        return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    except Exception:  # of a tensor on no device
        return value


def whole(value: Any) -> int | None:
    """An integer of any library as Python's; None for what is none: True, 1.0, 2^63 and arrays of several."""
    value = plain(value)
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except Exception:  # of a library that raises its own
        return None
    return found if found is not None and -(2**63) <= found < 2**63 else None


def bounded(name: str, value: Any, least: int, most: int | None = None, what: str = "a whole number") -> int:
    """A number of tokens, rounds or steps as an int. BadInput where it is none, or out of bounds."""
    found = whole(value)
    if found is None or found < least or (most is not None and found > most):
        bounds = f"of at least {least}" if most is None else f"in [{least}, {most}]"
        raise BadInput(f"{name}: expected {what} {bounds}, got {shown(value)}")
    return found


def one_of(name: str, value: Any, *known: str) -> None:
    """Raise BadInput where a value is none of these texts."""
    if not isinstance(value, str) or value not in known:
        raise BadInput(f"{name}: expected {' or '.join(map(repr, known))}, got {shown(value)}")


def read_int(choices: tuple, value: Any) -> int | None:
    return whole(int(value) if isinstance(value, float) and value.is_integer() else value)


def read_float(choices: tuple, value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return None if math.isnan(value) else float(value)
    except OverflowError:  # an integer beyond every float
        return None


def read_choice(choices: tuple, value: Any) -> Any:
    return next((known for known in choices if type(known) is type(value) and known == value), None)


READERS = {  # how a value of each kind is read, and what was expected where that gives None
    "int": (read_int, "an integer"),
    "float": (read_float, "a number"),
    "bool": (lambda choices, value: value if isinstance(value, bool) else None, "true or false"),
    "str": (lambda choices, value: value if isinstance(value, str) else None, "text"),
    "choice": (read_choice, ""),
    "list": (None, "integers like 3,2,1"),
    "texts": (None, "text"),
    "object": (None, ""),
}
