"""Declarations: a method is a validated dataclass, and its fields are written down once.

A field made with `setting(...)` carries its bounds and its help text. From it come the Python signature, the error
message, the CLI option (`--set shape.length=4`), the dashboard control and the reference page. A family ("decoder",
"drafter", …) is a registry of such classes; packages outside add members through the entry-point group
`decoding_workbench` (name = "family.name", value = the class).

    @register("shape", "fixed")
    @dataclass(frozen=True)
    class FixedLength(Declared):
        length: int = setting(4, ge=1, le=64, help="tokens drafted each round")
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from workbench.errors import BadInput

__all__ = [
    "Declared",
    "Field",
    "build",
    "describe",
    "from_dict",
    "get",
    "models",
    "names",
    "owner_only",
    "register",
    "setting",
    "to_dict",
]

FAMILIES = ("decoder", "drafter", "shape", "verifier", "policy", "quantizer", "cache")
ENTRY_POINTS = "decoding_workbench"

_registry: dict[str, dict[str, type]] = {family: {} for family in FAMILIES}
_outside_loaded = False


@dataclass(frozen=True)
class Field:
    """One declared parameter, as the front-ends see it."""

    name: str
    kind: str  # "int", "float", "bool", "str", "choice", "list", or "member" (another declared object)
    default: Any
    help: str = ""
    unit: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple = ()
    family: str = ""
    trust: str = "visitor"  # who may set it where an app serves others: "visitor", or "owner" alone
    model: bool = False  # names a model: of those offered, a visitor may choose too
    optional: bool = False

    @property
    def bounds(self) -> str:
        """The bounds as a phrase, e.g. `in [1, 64]` or `above 0`; empty if there are none."""
        low = f"[{self.ge:g}" if self.ge is not None else f"({self.gt:g}" if self.gt is not None else "(-inf"
        high = f"{self.le:g}]" if self.le is not None else f"{self.lt:g})" if self.lt is not None else "inf)"
        return "" if (low, high) == ("(-inf", "inf)") else f"in {low}, {high}"


def setting(
    default: Any = MISSING,
    *,
    factory=MISSING,
    help: str = "",
    unit: str = "",
    ge=None,
    gt=None,
    le=None,
    lt=None,
    choices=(),
    family: str = "",
    trust: str = "",
    model: bool = False,
):
    """A dataclass field with bounds and help; `family` names the registry a nested object comes from.

    trust: who may set it in an app that serves others. "owner" for whatever names a file, a download or code; free text
    that does not say "visitor" is the owner's too. model: it names a model; visitors choose among those offered.
    """
    facts = dict(help=help, unit=unit, ge=ge, gt=gt, le=le, lt=lt, choices=tuple(choices), family=family)
    facts |= {"trust": trust, "model": model}
    if factory is not MISSING:
        return field(default_factory=factory, metadata={"setting": facts})
    return field(default=default, metadata={"setting": facts})


class Declared:
    """Base of every declared method: checks its fields when it is made.

    trust: "owner" in a class that visitors of an app may not choose at all.
    Raises BadInput naming the parameter, what came and what was expected.
    """

    declared_name: typing.ClassVar[str] = ""
    family: typing.ClassVar[str] = ""
    trust: typing.ClassVar[str] = "visitor"

    def __post_init__(self) -> None:
        for entry in describe(type(self)):
            value = getattr(self, entry.name)
            object.__setattr__(self, entry.name, check(type(self).__name__, entry, value))


def check(owner: str, entry: Field, value: Any) -> Any:
    """The value, converted where it is harmless (4 → 4.0, list → tuple); BadInput where it does not fit."""
    where = f"{owner}({entry.name}=…)"
    if value is None and entry.optional:
        return None
    if entry.kind == "member":
        if isinstance(value, str):
            value = build(entry.family, value)
        if getattr(value, "family", None) != entry.family:
            raise BadInput(f"{where}: expected a {entry.family} ({', '.join(names(entry.family))}), got {value!r}")
        return value
    if entry.kind == "list":
        try:
            return tuple(check(owner, dataclasses.replace(entry, kind="int"), item) for item in value)
        except TypeError:
            raise BadInput(f"{where}: expected a list of integers, got {value!r}") from None
    if entry.kind == "bool" and not isinstance(value, bool):
        raise BadInput(f"{where}: expected true or false, got {value!r}")
    if entry.kind == "int" and (isinstance(value, bool) or not isinstance(value, int)):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        else:
            raise BadInput(f"{where}: expected an integer {entry.bounds}, got {value!r}".replace("  ", " "))
    if entry.kind == "float":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise BadInput(f"{where}: expected a number {entry.bounds}, got {value!r}".replace(" ,", ","))
        value = float(value)
    if entry.kind == "str" and not isinstance(value, str):
        raise BadInput(f"{where}: expected text, got {value!r}")
    if entry.kind == "choice" and value not in entry.choices:
        raise BadInput(f"{where}: expected one of {', '.join(map(repr, entry.choices))}, got {value!r}")
    outside = (
        (entry.ge is not None and value < entry.ge)
        or (entry.gt is not None and value <= entry.gt)
        or (entry.le is not None and value > entry.le)
        or (entry.lt is not None and value >= entry.lt)
    )
    if outside:
        raise BadInput(f"{where}: expected a value {entry.bounds}, got {value!r}")
    return value


@cache
def describe(cls: type) -> list[Field]:
    """The declared fields of a class, in order."""
    hints = typing.get_type_hints(cls)
    return [_field(f, hints[f.name]) for f in fields(cls) if "setting" in f.metadata]


def _field(f: dataclasses.Field, hint: Any) -> Field:
    facts = dict(f.metadata["setting"])
    arguments = typing.get_args(hint)
    optional = isinstance(hint, types.UnionType) and type(None) in arguments
    plain = next((a for a in arguments if a is not type(None)), hint) if optional else hint
    if facts["family"]:
        kind = "member"
    elif facts["choices"]:
        kind = "choice"
    elif typing.get_origin(plain) in (tuple, list):
        kind = "list"
    else:
        kind = {int: "int", float: "float", bool: "bool", str: "str"}[plain]
    default = f.default_factory() if f.default_factory is not MISSING else f.default
    if facts["model"] or (kind == "str" and facts["trust"] != "visitor"):
        facts["trust"] = "owner"
    facts["trust"] = facts["trust"] or "visitor"
    return Field(name=f.name, kind=kind, default=None if default is MISSING else default, optional=optional, **facts)


def register(family: str, name: str):
    """Class decorator: add a declared class to a family under a name. Raises ValueError where the name is taken."""

    def add(cls: type) -> type:
        known = _registry[family].get(name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(f"{family} {name!r} is already {known.__module__}.{known.__qualname__}")
        cls.family, cls.declared_name = family, name
        _registry[family][name] = cls
        return cls

    return add


def _load_members() -> None:
    """Import the package's own members, and once those of other packages (entry points)."""
    global _outside_loaded
    import workbench.bits
    import workbench.cache
    import workbench.decoders
    import workbench.speculation  # noqa: F401  (imported for the registrations)

    if _outside_loaded:
        return
    _outside_loaded = True
    for entry in entry_points(group=ENTRY_POINTS):
        family, _, name = entry.name.partition(".")
        if family not in _registry:
            raise BadInput(f"entry point {entry.name!r}: expected family.name with a family of {', '.join(FAMILIES)}")
        if name not in _registry[family]:
            register(family, name)(entry.load())


def names(family: str) -> list[str]:
    """Names of a family's members, sorted, those of installed packages included."""
    _load_members()
    return sorted(_registry[family])


def get(family: str, name: str) -> type:
    """The class of that name; BadInput with the nearest names where there is none."""
    _load_members()
    if name not in _registry[family]:
        raise BadInput(f"unknown {family} {name!r}; known: {', '.join(names(family))}{_near(name, names(family))}")
    return _registry[family][name]


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def build(family: str, name: str, values: dict[str, Any] | None = None) -> Any:
    """Make a member from flat values, dots reaching into nested members: {"shape.length": 4, "drafter": "copyspec"}."""
    cls = get(family, name)
    entries = {entry.name: entry for entry in describe(cls)}
    plain: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for key, value in (values or {}).items():
        head, _, rest = key.partition(".")
        if head not in entries or (rest and entries[head].kind != "member"):
            raise BadInput(
                f"{family} {name!r} has no parameter {key!r}; it has: {', '.join(entries) or 'none'}"
                f"{_near(key, list(entries))}"
            )
        if rest:
            nested.setdefault(head, {})[rest] = value
        else:
            plain[head] = value
    for head in sorted(nested, key=lambda name: entries[name].default is None):
        entry, inner = entries[head], nested[head]
        chosen = plain.get(head, entry.default)
        if chosen is None:  # the default depends on the other fields: ask the class
            others = {key: _read(entries[key], value) for key, value in plain.items() if key != head}
            chosen = getattr(cls(**others), head)
        base = {} if isinstance(chosen, str) else flatten(chosen)
        member = chosen if isinstance(chosen, str) else chosen.declared_name
        plain[head] = build(entry.family, member, {**base, **inner})
    return cls(**{key: _read(entries[key], value) for key, value in plain.items()})


def _read(entry: Field, value: Any) -> Any:
    """Text from a command line or a form, as the field's type; other values unchanged."""
    if not isinstance(value, str) or entry.kind in ("str", "choice", "member"):
        return value
    text = value.strip()
    if entry.optional and text.lower() in ("", "none"):
        return None
    try:
        if entry.kind == "bool":
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if entry.kind == "list":
            return tuple(int(part) for part in text.strip("[]()").replace(",", " ").split())
        return int(text) if entry.kind == "int" else float(text)
    except (ValueError, KeyError):
        wanted = {"int": "an integer", "float": "a number", "bool": "true or false", "list": "integers like 3,2,1"}
        raise BadInput(f"{entry.name}: expected {wanted[entry.kind]} {entry.bounds}, got {value!r}") from None


def flatten(member: Declared) -> dict[str, Any]:
    """The fields of a member as flat values for `build`, nested members by name and dotted fields."""
    out: dict[str, Any] = {}
    for entry in describe(type(member)):
        value = getattr(member, entry.name)
        if isinstance(value, Declared):
            out[entry.name] = value.declared_name
            out.update({f"{entry.name}.{key}": inner for key, inner in flatten(value).items()})
        else:
            out[entry.name] = value
    return out


def models(member: Declared) -> list[str]:
    """The names of the models that a member and those nested in it use."""
    found = []
    for entry in describe(type(member)):
        value = getattr(member, entry.name)
        found += [value] if entry.model and value else models(value) if isinstance(value, Declared) else []
    return found


def owner_only(
    family: str,
    name: str,
    values: Mapping[str, Any],
    offered: Sequence[str] = (),
    usual: Mapping[str, Any] | None = None,
) -> list[str]:
    """Which of the flat values for `build` only the owner of an app may set; nothing is made or read to find out.

    Free for everyone are the defaults and, of a model, the names that are offered. usual: further values that are
    free: those which a default member has. A member whose class trusts the owner alone is named itself.
    """
    if usual is None and get(family, name).trust == "owner":
        return [name]
    usual, found = usual or {}, []
    for entry in describe(get(family, name)):
        value = values.get(entry.name, entry.default)
        inner = _below(values, entry.name)
        if isinstance(value, Declared):
            value, inner = value.declared_name, {**flatten(value), **inner}
        own = flatten(entry.default) if isinstance(entry.default, Declared) else {}
        default = entry.default.declared_name if isinstance(entry.default, Declared) else entry.default
        same = (value or None) in (default or None, usual.get(entry.name) or None)
        if entry.trust == "owner" and not same and not (entry.model and value in offered):
            found.append(entry.name)
        elif entry.kind == "member" and value:
            free = {**own, **_below(usual, entry.name)} if same else None
            found += [f"{entry.name}.{key}" for key in owner_only(entry.family, value, inner, offered, free)]
    return found


def _below(values: Mapping[str, Any], head: str) -> dict[str, Any]:
    """The dotted values of a nested member, by their names in it."""
    return {key[len(head) + 1 :]: value for key, value in values.items() if key.startswith(f"{head}.")}


def to_dict(member: Declared) -> dict[str, Any]:
    """A JSON form: {"name": …, "settings": {field: value or nested form}}."""
    values = {entry.name: getattr(member, entry.name) for entry in describe(type(member))}
    plain = {k: to_dict(v) if isinstance(v, Declared) else v for k, v in values.items()}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
    return {"family": member.family, "name": member.declared_name, "settings": plain}


def from_dict(form: dict[str, Any]) -> Any:
    """The member that `to_dict` wrote down."""
    values = {k: from_dict(v) if isinstance(v, dict) and "family" in v else v for k, v in form["settings"].items()}
    return get(form["family"], form["name"])(**values)
