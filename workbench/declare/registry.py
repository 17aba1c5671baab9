"""The registry: the members of every family, by name. A member's module is imported when it is asked for.

FAMILIES are those of declared classes; KNOWN holds families of functions, too.
"""

import difflib
from collections.abc import Iterable
from functools import wraps
from importlib import import_module
from typing import Any

from workbench import aliases, members
from workbench.errors import BadInput, shown

FAMILIES = tuple(members.FAMILIES)
# the member, or "module:name" until it is used
KNOWN: dict[str, dict[str, Any]] = {family: {} for family in (*FAMILIES, *members.FUNCTIONS)}
for _family, _name, _module, _found in members.MEMBERS:
    KNOWN[_family][_name] = f"{_module}:{_found}"


def register(family: str, name: str):
    """Decorator: add a declared class or a function to its family under a name. Raises ValueError where it is taken."""

    def add(cls: Any) -> Any:
        known = KNOWN[family].get(name)
        where = known if isinstance(known, str | None) else f"{known.__module__}:{known.__qualname__}"
        if where is not None and where.partition(":")[2] != cls.__qualname__:
            raise ValueError(f"{family} {name!r} is already {where.replace(':', '.')}")
        cls.family, cls.declared_name = family, name
        if aliases.parameters(cls):
            cls.__init__ = _with_old_names(cls, cls.__init__)
        KNOWN[family][name] = cls
        return cls

    return add


def _with_old_names(cls: type, init: Any) -> Any:
    @wraps(init)
    def renaming(self, *args: Any, **values: Any) -> None:
        init(self, *args, **aliases.renamed(cls, values))

    return renaming


def names(family: str) -> list[str]:
    """Names of a family's members, sorted, those of installed packages included."""
    return sorted(_members(family))


def get(family: str, name: str) -> Any:
    """The class or function of that name; BadInput with the nearest names where there is none."""
    from workbench.declare.plugins import broken

    known = _members(family)
    if not isinstance(name, str):
        raise BadInput(f"{family}: expected a name ({', '.join(sorted(known))}), got {shown(name)}")
    if name not in known:
        name = aliases.member(family, name)
    if name not in known:
        if reason := broken().get(f"{family}.{name}"):
            raise BadInput(f"{family} {name!r} is a plug-in, and {reason}")
        raise BadInput(f"unknown {family} {shown(name)}; known: {', '.join(sorted(known))}{near(name, known)}")
    if isinstance(known[name], str):
        module, _, found = known[name].partition(":")
        known[name] = getattr(import_module(module), found)
    return known[name]


def _members(family: str) -> dict[str, Any]:
    from workbench.declare.plugins import broken

    broken()  # loads them
    if not isinstance(family, str) or family not in KNOWN:
        raise BadInput(f"unknown family {shown(family)}; expected one of {', '.join(KNOWN)}")
    return KNOWN[family]


def near(name: Any, known: Iterable[str]) -> str:
    """The known name that is nearest to a text, as the end of a message; empty where none is near."""
    close = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""
