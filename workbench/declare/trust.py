"""Who may set what: the models that a member names, and the values that only the owner of an app may give."""

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.declare.fields import Declared, describe
from workbench.declare.forms import flatten
from workbench.declare.registry import get


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
