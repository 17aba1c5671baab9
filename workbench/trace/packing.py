"""How a round's columns are written: compact, and readable again without loss.

What need not be written is left out: columns without values; all but one entry of a column whose values are all equal;
and, where neighbours share their key (the forward passes of one phase), all but one entry per run of such neighbours:
`runs` then counts them. Token ids and texts are always full lists. A draft that is a chain says so in `chain` instead
of naming every parent. Over layers, what is usual (zero bytes of a kind, the device tier, the width of the model's own
dtype, all tokens still live) is left out too.
"""

import math
import os
from typing import Any

from workbench.errors import BadInput
from workbench.trace.schema import CACHE_COUNTS, CACHE_KINDS, KEYS

__all__ = ["clean", "number", "pack", "pack_layers", "unpack", "unpack_layers"]

Columns = dict[str, list]
DIGITS = {"topk_raw": 3, "topk_sampled": 3, "wall_ms": 4}  # fewer than the usual six, where they are there to look at
_ZERO = (*CACHE_KINDS, *CACHE_COUNTS, "host_bytes")


def number(value: float, digits: int = 6) -> float:
    """A float with that many significant digits."""
    return float(f"{value:.{digits}g}")


def clean(value: Any, name: str, flags: list[str], digits: int = 6) -> Any:
    """A value as JSON can hold it: finite floats of six digits, other floats null and `name` added to the flags."""
    kind = type(value)
    if kind is float:
        if math.isfinite(value):
            return float(f"{value:.{digits}g}")
        flags.append(name)
        return None
    if kind is int or kind is str or kind is bool or value is None:
        return value
    if kind is list or kind is tuple:
        return [clean(item, name, flags, digits) for item in value]
    if isinstance(value, dict):
        return {str(key): clean(item, f"{name}.{key}", flags, digits) for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # a NumPy number or array
        return clean(value.tolist(), name, flags, digits)
    raise BadInput(f"{name}: expected numbers, text, lists and mappings, got {kind.__name__}")


def _constant(values: list) -> bool:
    first = values[0]
    return not isinstance(first, (list, tuple, dict)) and values.count(first) == len(values)


def pack(group: str, columns: Columns, flags: list[str]) -> dict[str, Any]:
    """The columns of a group as the file holds them. Raises BadInput where they differ in length or lack their key."""
    key = KEYS[group]
    if not any(columns.values()):
        return {}
    if key not in columns:
        raise BadInput(f"{group}: column {key!r} is missing; it is needed beside {', '.join(columns)}")
    keys = columns[key]
    n = len(keys)
    starts = [i for i in range(n) if not i or keys[i] != keys[i - 1]]
    runs = [end - start for start, end in zip(starts, [*starts[1:], n], strict=True)]
    packed: dict[str, Any] = {"runs": runs} if len(runs) < n and group != "tokens" else {}
    if columns.get("depth") == keys and columns.get("parent") == [node - 1 for node in keys]:
        packed["chain"] = True
    for name, values in columns.items():
        if len(values) != n:
            raise BadInput(f"{group}.{name}: expected {n} values as in {group}.{key}, got {len(values)}")
        where, digits = f"{group}.{name}", DIGITS.get(name, 6)
        if name in ("depth", "parent") and "chain" in packed:
            continue
        if name != key and _constant(values) and (name != "text" or values[0] is None):
            if (value := clean(values[0], where, flags, digits)) is not None:
                packed[name] = value
            continue
        if "runs" in packed and _repeat(short := [values[start] for start in starts], runs) == values:
            values = short
        packed[name] = [clean(value, where, flags, digits) for value in values]
    return packed


def _repeat(values: list, runs: list[int]) -> list:
    return [value for value, count in zip(values, runs, strict=True) for _ in range(count)]


def unpack(group: str, packed: dict[str, Any] | None) -> Columns:
    """The columns of a group as full lists; an empty mapping where the round has none."""
    if not packed:
        return {}
    runs = packed.get("runs")
    n = sum(runs) if runs else len(packed[KEYS[group]])
    columns: Columns = {}
    for name, values in packed.items():
        if name in ("runs", "chain"):
            continue
        if not isinstance(values, list):
            columns[name] = [values] * n
        else:
            columns[name] = list(values) if len(values) == n else _repeat(values, runs)
    if packed.get("chain"):
        columns |= {"depth": list(columns["node"]), "parent": [node - 1 for node in columns["node"]]}
    return columns


def pack_layers(columns: Columns, facts: dict[str, Any], where: str, flags: list[str]) -> dict[str, Any]:
    """Cache columns over the layers of one model as the file holds them; `facts` is the model's entry in `run`."""
    packed = {}
    for name, values in columns.items():
        if not isinstance(values, list):
            packed[name] = clean(values, f"{where}.{name}", flags)
        elif values and _constant(values):
            packed[name] = clean(values[0], f"{where}.{name}", flags)
        else:
            packed[name] = clean(values, f"{where}.{name}", flags)
    usual = _usual(packed, facts)
    return {name: value for name, value in packed.items() if value is not None and value != usual.get(name)}


def _usual(packed: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    usual = dict.fromkeys(_ZERO, 0) | {"tier": "device", "simulated": False}
    return usual | {"bits_nominal": facts.get("kv_bits"), "logical_length": packed.get("live_slots")}


def unpack_layers(packed: dict[str, Any], facts: dict[str, Any]) -> Columns:
    """The cache columns of one model, one entry per layer, with what is usual filled in."""
    lists = (len(values) for values in packed.values() if isinstance(values, list))
    n = facts.get("layers") or max(lists, default=1)
    whole = {"live_slots": None, **_usual(packed, facts), **packed}
    return {name: list(values) if isinstance(values, list) else [values] * n for name, values in whole.items()}
