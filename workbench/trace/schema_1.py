"""Traces of schema 1, which version 0.1 wrote: the one place that knows how they differ.

Their names and values become those of today, and the columns of their rounds full lists: where neighbours share a
group's key, `runs` counted them and the other columns hold one value each; a column whose values are all equal was
written as that value, and of a draft that is a chain `parent` and `depth` were left out.
"""

from collections.abc import Callable
from typing import Any

from workbench.aliases import MEMBERS, PARAMETERS, RUN, VALUES
from workbench.trace.forms import DEEPEST, Damaged
from workbench.trace.schema import KEYS, SCHEMA, TABLES

Event = dict[str, Any]
OPS = {"seal": "quantize", "retier": "offload"}


def current_run(run: Event) -> Event:
    """A run event of schema 1 as one of today."""
    names = {**RUN, "rounds": "body"}
    run = {names.get(name, name): value for name, value in run.items()} | {"schema": SCHEMA}
    run |= {name: _named(run[name], words) for name, words in VALUES.items() if name in run}
    if isinstance(body := run.get("body"), dict):
        bodies = {"host": "stock", "device": "fast" if str(run.get("device")).startswith("cpu") else "graph"}
        run["body"] = {"name": _named(body.get("implementation"), bodies), "reason": body.get("reason")}
    return run | {name: _declared(run[name]) for name in ("decoder", "cache") if name in run}


def _named(name: Any, names: dict[str, str]) -> Any:
    return names.get(name, name) if isinstance(name, str) else name


def _declared(value: Any, depth: int = DEEPEST) -> Any:
    """A declared thing, and those inside of it, with the names of today."""
    if not depth or not isinstance(value, dict) or not isinstance(value.get("settings"), dict):
        return value
    family, name = str(value.get("family")), value.get("name")
    names = PARAMETERS.get((family, str(name)), {})
    settings = {names.get(key, key): _declared(inner, depth - 1) for key, inner in value["settings"].items()}
    return value | {"name": MEMBERS.get((family, str(name)), name), "settings": settings}


def current(event: Any, layers: dict[str, int], pay: Callable[[int], None]) -> Any:
    """Another event of schema 1 as one of today. layers: of the models by role; pay: told of the cells that columns
    take once they are full lists. Raises Damaged where a column cannot be told."""
    kind = event.get("type") if isinstance(event, dict) else None
    if kind == "cache":
        event = {"importance" if name == "score" else name: value for name, value in event.items()}
        back = event.get("op") == "retier" and event.get("destination") == "device"
        event |= {"op": "fetch" if back else _named(event.get("op"), OPS)}
    elif kind == "round":
        for name in filter(event.get, ("tokens", "prompt", "drafts", "forwards", "bits")):
            try:
                event = event | {name: _listed(name, event[name], pay)}
            except Damaged as why:
                raise Damaged(f"round {event.get('round')} has damaged {name}: {why}") from None
        passes, bits = event.get("forwards") or {}, event.get("bits") or {}
        if "share" in passes:
            shares = passes.pop("share")
            of = zip(shares, map(str, passes.get("model") or [None] * len(shares)), strict=True)
            passes["layers_run"] = [_part(share, layers.get(role)) for share, role in of]
        if "kind" in bits:
            bits["codec"] = bits.pop("kind")
        if "reason" in bits:
            bits["reason"] = [_named(reason, OPS) for reason in bits["reason"]]
    return event


def _part(share: Any, layers: int | None) -> int | None:
    return round(share * layers) if layers and isinstance(share, float) and 0 <= share <= 1 else None


def _listed(group: str, packed: Any, pay: Callable[[int], None]) -> dict[str, list]:
    if not isinstance(packed, dict) or not isinstance(key := packed.get(KEYS[group]), list):
        raise Damaged(f"{KEYS[group]} is missing")
    runs = packed.get("runs") or [1] * len(key)
    if not isinstance(runs, list) or set(map(type, runs)) - {int} or min(runs, default=1) < 1:
        raise Damaged("runs are no counts")
    n, columns = sum(runs), {}
    if n > len(key):
        pay(n * len(TABLES["tokens" if group == "prompt" else group]))
    for name, values in packed.items():
        if name in ("runs", "chain"):
            continue
        counts = [n]
        if isinstance(values, list):
            counts = runs if len(values) == len(runs) else [1] * len(values)
        elif name == "text" and values is not None:
            raise Damaged("text is no list")
        else:
            values = [values]
        if sum(counts) != n:
            raise Damaged(f"{name} is of unequal length")
        pairs = list(zip(values, counts, strict=True))
        pay(sum(count * (1 + len(str(value)) // 8) for value, count in pairs if count > 1))
        columns[name] = [value for value, count in pairs for _ in range(count)]
    if packed.get("chain") is True and group == "drafts":
        if set(map(type, columns["node"])) - {int}:
            raise Damaged("the nodes are no numbers")
        columns |= {"depth": list(columns["node"]), "parent": [node - 1 for node in columns["node"]]}
    return columns
