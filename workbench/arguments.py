"""Checks that calls share: what does not fit is refused in one line."""

from numbers import Integral
from typing import Any

from workbench.errors import BadInput, shown

__all__ = ["one_of", "whole"]


def one_of(name: str, value: Any, *known: str) -> None:
    """Raise BadInput where a value is none of these texts."""
    if not isinstance(value, str) or value not in known:
        raise BadInput(f"{name}: expected {' or '.join(map(repr, known))}, got {shown(value)}")


def whole(name: str, value: Any, least: int, most: int | None = None, what: str = "a whole number") -> int:
    """A number of tokens, rounds or steps as an int. BadInput where it is none, or out of bounds."""
    found = value if isinstance(value, Integral) and not isinstance(value, bool) else None
    if found is None or found < least or (most is not None and found > most):
        bounds = f"of at least {least}" if most is None else f"in [{least}, {most}]"
        raise BadInput(f"{name}: expected {what} {bounds}, got {shown(value)}")
    return int(found)
