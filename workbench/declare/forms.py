"""Members written down: as flat values with dots (command line, forms), and as JSON (traces, files)."""

from collections.abc import Mapping
from typing import Any

from workbench import aliases
from workbench.declare.fields import Declared, Field, check, describe, make, unknown
from workbench.declare.registry import FAMILIES, get, names
from workbench.errors import BadInput, shown

DEEPEST = 32  # levels of members within members
TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def build(family: str, name: str, values: Mapping[str, Any] | None = None) -> Any:
    """Make a member from flat values, dots reaching into nested members: {"shape.length": 4, "drafter": "copyspec"}."""
    cls = _class(family, name)
    entries = {entry.name: entry for entry in describe(cls)}
    if not isinstance(values, Mapping | None):
        raise BadInput(f"{family} {name!r}: expected parameters by name, got {shown(values)}")
    plain: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for key, value in aliases.renamed(cls, values or {}).items():
        head, dot, rest = key.partition(".") if isinstance(key, str) else (key, "", "")
        if head not in entries or (dot and (entries[head].kind != "member" or not rest)):
            raise unknown(cls, key)
        if rest:
            nested.setdefault(head, {})[rest] = value
        else:
            plain[head] = _read(entries[head], value)
    for head in sorted(nested, key=lambda name: entries[name].default is None):
        entry = entries[head]
        chosen = plain.get(head, entry.default)
        if chosen is None:  # the default depends on the other fields: ask the class
            chosen = getattr(make(cls, {key: value for key, value in plain.items() if key != head}), head)
        if chosen is None:
            raise BadInput(
                f"{family} {name!r} has no {head}; name one ({', '.join(names(entry.family))}) to set its own"
            )
        base: dict[str, Any] = {}
        if not isinstance(chosen, str):
            chosen = check(cls, entry, chosen)
            base, chosen = flatten(chosen), chosen.declared_name
        plain[head] = build(entry.family, chosen, {**base, **nested[head]})
    return make(cls, plain)


def _class(family: str, name: str) -> type:
    """The declared class of that name. Raises BadInput for a function, of which nothing can be set."""
    if family not in FAMILIES:
        raise BadInput(f"unknown family {shown(family)}; expected one of {', '.join(FAMILIES)}")
    return get(family, name)


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
            return TRUTHS[text.lower()]
        if entry.kind == "list":
            return tuple(int(part) for part in text.strip("[]()").replace(",", " ").split())
        return int(text) if entry.kind == "int" else float(text)
    except (ValueError, KeyError):
        raise BadInput(f"{entry.name}: expected {entry.wanted}, got {shown(value)}") from None


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


def to_dict(member: Declared) -> dict[str, Any]:
    """A JSON form: {"family": …, "name": …, "settings": {field: value or nested form}}; a function by its name."""
    values = {entry.name: getattr(member, entry.name) for entry in describe(type(member))}
    plain = {k: to_dict(v) if isinstance(v, Declared) else v for k, v in values.items()}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
    plain = {k: getattr(v, "__name__", type(v).__name__) if callable(v) else v for k, v in plain.items()}
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
    return make(_class(form.get("family"), form.get("name")), values)
