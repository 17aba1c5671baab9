"""A declared class: its fields with their bounds, and the check of their values when one is made."""

import operator
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from typing import Any, ClassVar

from workbench import aliases
from workbench.declare.registry import get, names, near
from workbench.errors import BadInput, shown
from workbench.values import READERS, items, plain

BOUNDS = {  # what each is called in messages, and what holds between a value and it
    "ge": ("of at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("of at most", operator.le),
    "lt": ("below", operator.lt),
}


@dataclass(frozen=True)
class Field:
    """One declared parameter, as the front-ends see it.

    kind: "int", "float", "bool", "str", "choice", "list" (of integers), "texts", "member" (another declared object), or
    "object" (given in Python alone). read: in place of the reader of its kind; gives None, or raises BadInput, for what
    does not fit. trust: who may set it where an app serves others, "visitor" or "owner". model: it names a model; of
    those offered, a visitor may choose too.
    """

    name: str
    kind: str
    default: Any
    help: str = ""
    unit: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple = ()
    family: str = ""
    trust: str = "visitor"
    model: bool = False
    read: Callable[[Any], Any] | None = None
    optional: bool = False

    @property
    def limits(self) -> dict[str, float]:
        """The bounds that there are, the lower first, by their names in BOUNDS."""
        return {name: bound for name in BOUNDS if (bound := getattr(self, name)) is not None}

    @property
    def bounds(self) -> str:
        """The bounds as a phrase, e.g. `in [1, 64]`, `of at least 1` or `above 0`; empty if there are none."""
        limits = {name: f"{n:g}" if n < 2**53 else f"2^{n.bit_length() - 1}" for name, n in self.limits.items()}
        if len(limits) < 2:
            return "".join(f"{BOUNDS[name][0]} {limit}" for name, limit in limits.items())
        return f"in {'[' if 'ge' in limits else '('}{', '.join(limits.values())}{']' if 'le' in limits else ')'}"

    @property
    def wanted(self) -> str:
        """What a value has to be, in words."""
        what = f"one of {', '.join(map(str, self.choices))}" if self.choices else READERS[self.kind][1]
        return f"{what} {self.bounds}".strip()

    @property
    def facts(self) -> str:
        """What it takes, its unit and its default, in a line."""
        default = "none" if self.default in (None, (), {}) else getattr(self.default, "declared_name", self.default)
        if self.kind == "member":
            return f"one of {', '.join(names(self.family))}; default {default}; its own parameters are {self.name}.…"
        return "; ".join(filter(None, [self.wanted, self.unit, f"default {default}"]))


def setting(default: Any = MISSING, *, factory=MISSING, trust: str = "", choices=(), **facts: Any):
    """A dataclass field with what is declared of it: help, unit, ge, gt, le, lt, choices, family, kind, read.

    family: the registry that a nested object comes from. trust: who may set it in an app that serves others: "owner"
    for whatever names a file, a download or code; free text that does not say "visitor" is the owner's too. model: it
    names a model; visitors choose among those offered. kind, read: see `Field`; else the kind follows from the type.
    """
    metadata = {"setting": facts | {"trust": trust, "choices": tuple(choices)}}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


class Declared:
    """Base of every declared method: checks its fields when it is made.

    trust: "owner" in a class that visitors of an app may not choose at all.
    Raises BadInput naming the parameter, what came and what was expected.
    """

    declared_name: ClassVar[str] = ""
    family: ClassVar[str] = ""
    trust: ClassVar[str] = "visitor"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        aliases.refuse_old(cls)

    def __post_init__(self) -> None:
        for entry in describe(type(self)):
            object.__setattr__(self, entry.name, check(type(self), entry, getattr(self, entry.name)))

    def __getattr__(self, name: str) -> Any:
        new = aliases.parameters(type(self)).get(name)
        if new is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        aliases.tell(f"{type(self).__name__}.{name}", new)
        return getattr(self, new)


def check(owner: type, entry: Field, value: Any) -> Any:
    """The value, converted where it is harmless (4 → 4.0, list → tuple); BadInput where it does not fit."""
    where = f"{owner.__name__}({entry.name}=…)" if owner.family else entry.name
    if value is None and entry.optional:
        return None
    if entry.kind == "member":
        return _member(where, entry, value)
    if entry.kind == "list":
        one = replace(entry, kind="int", optional=False)
        return tuple(check(owner, one, item) for item in items(where, value))
    if entry.kind in ("object", "texts"):
        return entry.read(value)
    found = entry.read(value) if entry.read else READERS[entry.kind][0](entry.choices, plain(value))
    if found is None or not all(BOUNDS[name][1](found, bound) for name, bound in entry.limits.items()):
        raise BadInput(f"{where}: expected {entry.wanted}, got {shown(value)}")
    return found


def _member(where: str, entry: Field, value: Any) -> Declared:
    if isinstance(value, str):
        value = make(get(entry.family, value))
    if not isinstance(value, Declared) or value.family != entry.family:
        known = ", ".join(names(entry.family))
        raise BadInput(f"{where}: expected a {entry.family} ({known}), got {shown(value)}")
    return value


@cache
def describe(cls: type) -> list[Field]:
    """The declared fields of a class, in order."""
    hints = typing.get_type_hints(cls)
    return [_field(f, hints[f.name]) for f in fields(cls) if "setting" in f.metadata]


def _field(f: Any, hint: Any) -> Field:
    facts = dict(f.metadata["setting"])
    arguments = typing.get_args(hint)
    optional = isinstance(hint, types.UnionType) and type(None) in arguments
    plain = next((a for a in arguments if a is not type(None)), hint) if optional else hint
    kind = facts.pop("kind", "") or ("member" if facts.get("family") else "choice" if facts["choices"] else "")
    if not kind and typing.get_origin(plain) in (tuple, list):
        kind = "list"
    kind = kind or {int: "int", float: "float", bool: "bool", str: "str"}[plain]
    default = f.default_factory() if f.default_factory is not MISSING else f.default
    if facts.get("model") or (kind == "str" and facts["trust"] != "visitor"):
        facts["trust"] = "owner"
    facts["trust"] = facts["trust"] or "visitor"
    return Field(name=f.name, kind=kind, default=None if default is MISSING else default, optional=optional, **facts)


def make(cls: type, values: Mapping[str, Any] = {}) -> Any:
    """A member from the values of its fields; BadInput where one has no such field or is missing."""
    values = aliases.renamed(cls, values)
    entries = [entry.name for entry in describe(cls)]
    for key in values:
        if key not in entries:
            raise unknown(cls, key)
    required = [f.name for f in fields(cls) if f.init and f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise BadInput(f"{cls.family} {cls.declared_name!r}: expected a value for {', '.join(missing)}")
    return cls(**values)


def unknown(cls: type, key: Any) -> BadInput:
    """The error for a parameter that a class does not have."""
    known = [entry.name for entry in describe(cls)]
    has = ", ".join(known) or "none"
    return BadInput(
        f"{cls.family} {cls.declared_name!r} has no parameter {shown(key)}; it has: {has}{near(key, known)}"
    )
