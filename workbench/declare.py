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
import threading
import types
import typing
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from workbench.errors import BadInput, shown
from workbench.values import READERS, items, plain

__all__ = [
    "Declared",
    "Field",
    "broken",
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
_broken: dict[str, str] = {}  # entry point -> why it could not be loaded
_outside = threading.RLock()  # held while the members of other packages are loaded
_outside_loaded = False
_outside_loading = False
DEEPEST = 32  # levels of members within members


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
        return _member(where, entry, value)
    if entry.kind == "list":
        return tuple(
            check(owner, dataclasses.replace(entry, kind="int", optional=False), item) for item in items(where, value)
        )
    read, wanted = READERS[entry.kind]
    found = read(entry.choices, plain(value))
    if found is None:
        phrase = wanted if entry.kind != "choice" else f"one of {', '.join(map(repr, entry.choices))}"
        raise BadInput(f"{where}: expected {f'{phrase} {entry.bounds}'.strip()}, got {shown(value)}")
    outside = (
        (entry.ge is not None and found < entry.ge)
        or (entry.gt is not None and found <= entry.gt)
        or (entry.le is not None and found > entry.le)
        or (entry.lt is not None and found >= entry.lt)
    )
    if outside:
        raise BadInput(f"{where}: expected a value {entry.bounds}, got {shown(value)}")
    return found


def _member(where: str, entry: Field, value: Any) -> "Declared":
    if isinstance(value, str):
        value = build(entry.family, value)
    if not isinstance(value, Declared) or value.family != entry.family:
        known = ", ".join(names(entry.family))
        raise BadInput(f"{where}: expected a {entry.family} ({known}), got {shown(value)}")
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
    global _outside_loaded, _outside_loading
    import workbench.cache
    import workbench.cache.codecs
    import workbench.decoders
    import workbench.speculation  # noqa: F401  (imported for the registrations)

    if _outside_loaded:
        return
    with _outside:
        if _outside_loaded or _outside_loading:  # by another thread meanwhile; asked for by a plug-in as it is loaded
            return
        _outside_loading = True
        try:
            for entry in entry_points(group=ENTRY_POINTS):
                _load_outside(entry)
            _outside_loaded = True
        finally:
            _outside_loading = False
    for name, reason in _broken.items():
        warnings.warn(f"the plug-in {name!r} is left out: {reason}", stacklevel=2)


def _load_outside(entry: Any) -> None:
    """Register what an entry point names. One that fails is noted, and leaves nothing behind."""
    family, _, name = entry.name.partition(".")
    before = {known: dict(members) for known, members in _registry.items()}
    try:
        if family not in _registry or not name:
            raise BadInput(f"expected family.name, with a family of {', '.join(FAMILIES)}")
        cls = entry.load()
        if not (isinstance(cls, type) and issubclass(cls, Declared) and dataclasses.is_dataclass(cls)):
            raise BadInput(f"expected a dataclass that derives from workbench.declare.Declared, got {shown(cls)}")
        describe(cls)
        register(family, name)(cls)
        _make(cls, {})  # front-ends start from the defaults
    except (Exception, SystemExit) as error:
        _registry.update(before)
        reason = str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
        _broken[entry.name] = f"{entry.value} could not be loaded: {' '.join(reason.split())}"


def broken() -> dict[str, str]:
    """The plug-ins (entry points) that could not be loaded, by name, and why."""
    _load_members()
    return dict(_broken)


def names(family: str) -> list[str]:
    """Names of a family's members, sorted, those of installed packages included."""
    _load_members()
    return sorted(_family(family))


def get(family: str, name: str) -> type:
    """The class of that name; BadInput with the nearest names where there is none."""
    _load_members()
    members = _family(family)
    if not isinstance(name, str):
        raise BadInput(f"{family}: expected a name ({', '.join(sorted(members))}), got {shown(name)}")
    if name not in members:
        if reason := _broken.get(f"{family}.{name}"):
            raise BadInput(f"{family} {name!r} is a plug-in, and {reason}")
        raise BadInput(
            f"unknown {family} {shown(name)}; known: {', '.join(sorted(members))}{_near(name, list(members))}"
        )
    return members[name]


def _family(family: str) -> dict[str, type]:
    if not isinstance(family, str) or family not in _registry:
        raise BadInput(f"unknown family {shown(family)}; expected one of {', '.join(FAMILIES)}")
    return _registry[family]


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def build(family: str, name: str, values: Mapping[str, Any] | None = None) -> Any:
    """Make a member from flat values, dots reaching into nested members: {"shape.length": 4, "drafter": "copyspec"}."""
    cls = get(family, name)
    entries = {entry.name: entry for entry in describe(cls)}
    if not isinstance(values, Mapping | None):
        raise BadInput(f"{family} {name!r}: expected parameters by name, got {shown(values)}")
    plain: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for key, value in (values or {}).items():
        head, dot, rest = key.partition(".") if isinstance(key, str) else (key, "", "")
        if head not in entries or (dot and (entries[head].kind != "member" or not rest)):
            raise _unknown(cls, key)
        if rest:
            nested.setdefault(head, {})[rest] = value
        else:
            plain[head] = value
    for head in sorted(nested, key=lambda name: entries[name].default is None):
        entry, inner = entries[head], nested[head]
        chosen = plain.get(head, entry.default)
        if chosen is None:  # the default depends on the other fields: ask the class
            others = {key: _read(entries[key], value) for key, value in plain.items() if key != head}
            chosen = getattr(_make(cls, others), head)
        if not isinstance(chosen, str):
            chosen = check(cls.__name__, entry, chosen)
        if chosen is None:
            raise BadInput(
                f"{family} {name!r} has no {head}; name one ({', '.join(names(entry.family))}) to set its own"
            )
        base = {} if isinstance(chosen, str) else flatten(chosen)
        member = chosen if isinstance(chosen, str) else chosen.declared_name
        plain[head] = build(entry.family, member, {**base, **inner})
    return _make(cls, {key: _read(entries[key], value) for key, value in plain.items()})


def _make(cls: type, values: Mapping[str, Any]) -> Any:
    """A member from the values of its fields; BadInput where one has no such field or is missing."""
    entries = [entry.name for entry in describe(cls)]
    unknown = next((key for key in values if key not in entries), None)
    if unknown is not None:
        raise _unknown(cls, unknown)
    required = [f.name for f in fields(cls) if f.init and f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise BadInput(f"{cls.family} {cls.declared_name!r}: expected a value for {', '.join(missing)}")
    return cls(**values)


def _unknown(cls: type, key: Any) -> BadInput:
    known = [entry.name for entry in describe(cls)]
    near = _near(key, known) if isinstance(key, str) else ""
    has = ", ".join(known) or "none"
    return BadInput(f"{cls.family} {cls.declared_name!r} has no parameter {shown(key)}; it has: {has}{near}")


def _read(entry: Field, value: Any) -> Any:
    """Text from a command line or a form, as the field's type; other values unchanged."""
    if not isinstance(value, str) or entry.kind in ("str", "member"):
        return value
    text = value.strip()
    if entry.optional and text.lower() in ("", "none"):
        return None
    if entry.kind == "choice":
        return next((known for known in entry.choices if str(known) == text), value)
    try:
        if entry.kind == "bool":
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if entry.kind == "list":
            return tuple(int(part) for part in text.strip("[]()").replace(",", " ").split())
        return int(text) if entry.kind == "int" else float(text)
    except (ValueError, KeyError):
        wanted = {"int": "an integer", "float": "a number", "bool": "true or false", "list": "integers like 3,2,1"}
        raise BadInput(f"{entry.name}: expected {wanted[entry.kind]} {entry.bounds}, got {shown(value)}") from None


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


def from_dict(form: Mapping[str, Any], depth: int = 0) -> Any:
    """The member that `to_dict` wrote down. Raises BadInput where the form is damaged, or names what is not here."""
    settings = form.get("settings") if isinstance(form, Mapping) else None
    if not isinstance(settings, Mapping) or depth > DEEPEST:
        raise BadInput(f"a member's form: expected {{family, name, settings}}, got {shown(form)}")
    values = {
        key: from_dict(value, depth + 1) if isinstance(value, Mapping) and "family" in value else value
        for key, value in settings.items()
    }
    return _make(get(form.get("family"), form.get("name")), values)
