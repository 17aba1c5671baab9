"""How columns are written: finite, rounded, and without what need not be said."""

import math
import os
from typing import Any

from workbench.errors import BadInput
from workbench.trace.schema import CACHE_COUNTS, CACHE_KINDS, KEYS

Columns = dict[str, list]
DIGITS = {"topk_raw": 3, "topk_sampled": 3, "wall_ms": 4}  # fewer than the usual six, where they are there to look at
FORMS = {digits: f".{digits}g" for digits in range(1, 18)}
AS_IT_IS = frozenset({int, str, bool, type(None)})
ZERO = dict.fromkeys((*CACHE_KINDS, *CACHE_COUNTS, "host_bytes"), 0)


def number(value: float, digits: int = 6) -> float:
    """A float with that many significant digits."""
    return float(format(value, FORMS[digits]))


def clean(value: Any, name: str, flags: list[str], digits: int = 6) -> Any:
    """A value as JSON can hold it: finite floats of six digits, other floats null and `name` added to the flags."""
    kind = type(value)
    if kind is float:
        if math.isfinite(value):
            return float(format(value, FORMS[digits]))
        flags.append(name)
        return None
    if kind in AS_IT_IS:
        return value
    if kind is list or kind is tuple:
        form = FORMS[digits]
        return [item if (kind := type(item)) in AS_IT_IS
                else float(format(item, form)) if kind is float and math.isfinite(item)
                else clean(item, name, flags, digits) for item in value]  # fmt: skip
    if isinstance(value, dict):
        return {str(key): clean(item, f"{name}.{key}", flags, digits) for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # a NumPy number or array
        return clean(value.tolist(), name, flags, digits)
    raise BadInput(f"{name}: expected numbers, text, lists and mappings, got {kind.__name__}")


def listed(group: str, columns: Columns, flags: list[str]) -> Columns:
    """The columns of a group as the file holds them. Raises BadInput where they differ in length or lack their key."""
    if not any(columns.values()):
        return {}
    if KEYS[group] not in columns:
        raise BadInput(f"{group}: column {KEYS[group]!r} is missing; it is needed beside {', '.join(columns)}")
    n = len(columns[KEYS[group]])
    for name, values in columns.items():
        if len(values) != n:
            raise BadInput(f"{group}.{name}: expected {n} values as in {group}.{KEYS[group]}, got {len(values)}")
    known = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    return {name: clean(values, f"{group}.{name}", flags, DIGITS.get(name, 6)) for name, values in known.items()}


def pack_layers(columns: Columns, facts: dict[str, Any], where: str, flags: list[str]) -> dict[str, Any]:
    """Cache columns over the layers of one model as the file holds them; `facts` is the model's entry in `run`."""
    packed = {}
    for name, values in columns.items():
        one = _alike(values)
        packed[name] = clean(values[0] if one else values, f"{where}.{name}", flags)
        if not one and _alike(packed[name]):
            packed[name] = packed[name][0]
    usual = _usual(packed, facts)
    return {name: value for name, value in packed.items() if value is not None and value != usual.get(name)}


def _alike(values: Any) -> bool:
    """Whether all that a list holds is the same."""
    return isinstance(values, list) and bool(values) and values.count(values[0]) == len(values)


def unpack_layers(packed: dict[str, Any], facts: dict[str, Any]) -> Columns:
    """The cache columns of one model, one entry per layer, with what is usual filled in."""
    lists = (len(values) for values in packed.values() if isinstance(values, list))
    n = facts.get("layers") or max(lists, default=1)
    whole = {"live_slots": None, **_usual(packed, facts), **packed}
    return {name: list(values) if isinstance(values, list) else [values] * n for name, values in whole.items()}


def _usual(packed: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    usual = {**ZERO, "tier": "device", "simulated": False, "bits_nominal": facts.get("kv_bits")}
    return usual | {"logical_length": packed.get("live_slots")}
