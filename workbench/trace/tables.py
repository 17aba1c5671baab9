"""The tables of a trace, derived from its events.

`table` takes the list of events (the `run` event first) and returns a DataFrame with exactly the columns of
`schema.TABLES`, in that order and with fixed dtypes, also when nothing was recorded.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.trace.columns import unpack_layers
from workbench.trace.schema import CACHE_KINDS, KEYS, TABLES

FREE = ("pad", "staging")  # bytes that hold no committed token
Event = dict[str, Any]
Columns = dict[str, list]


def frame(name: str, columns: Mapping[str, list]) -> pd.DataFrame:
    """Columns as the DataFrame of that table: missing columns filled, others left out, dtypes fixed."""
    n = max(map(len, columns.values()), default=0)
    series = {}
    for column in TABLES[name]:
        values = columns.get(column.name, [None] * n)
        if column.dtype == "bool":
            values = map(bool, values)
        series[column.name] = pd.Series([*values], dtype=column.dtype)
    return pd.DataFrame(series)


def expand(event: Event, last: Event | None = None) -> Event:
    """A round event with all its groups; where it has none, an empty mapping. Tokens always have texts.

    last: the log's `final` round; where it is this one, its last text is whole.
    """
    whole = {**event, **{group: {name: [*values] for name, values in event.get(group, {}).items()} for group in KEYS}}
    if tokens := whole["tokens"]:
        tokens["text"] = _texts(event, tokens, last)
    return whole


def _texts(event: Event, tokens: Columns, last: Event | None) -> list[str]:
    texts = [text or "" for text in tokens.get("text", [""] * len(tokens["token_id"]))]
    return [*texts[:-1], texts[-1] + rest(event)] if event is last else texts


def final(log: Sequence[Event]) -> Event | None:
    """The last round with tokens of a run that has ended; None while it goes on."""
    ended = False
    for event in reversed(log):
        if event["type"] == "end":
            ended = True
        elif event["type"] == "round" and (not ended or event.get("emitted")):
            return event if ended else None
    return None


def rest(last: Event | None) -> str:
    """What the last token's text lacks in the round's own columns, where the run ended with it: see `Step.rest`."""
    return (last or {}).get("rest") or ""


def model(run: Event, role: Any) -> dict[str, Any]:
    """What the run says about the model of that role (or name); an empty mapping where it says nothing."""
    models = run.get("models") or () if isinstance(role, str) else ()
    return next((one for one in models if role in (one.get("role"), one.get("name"))), {})


def is_target(run: Event, phase: str, role: str | None) -> bool:
    """Whether a forward pass is one of the target that tokens have to pay for (phase `target`, `lookahead` or
    `prefill`)."""
    return phase in ("target", "lookahead", "prefill") and not _drafts(run, role)


def _drafts(run: Event, role: str | None) -> bool:
    return model(run, role).get("role", role) == "draft"


def _passes(event: Event) -> Iterator[tuple]:
    """Phase, model and query rows of the forward passes of a round."""
    passes = event.get("forwards") or {"phase": ()}
    missing = [None] * len(passes["phase"])
    return zip(passes["phase"], passes.get("model", missing), passes.get("rows", missing), strict=True)


def table(name: str, log: list[Event]) -> pd.DataFrame:
    """The table of that name; `prompt_tokens` has the columns of `tokens`."""
    return frame("tokens" if name == "prompt_tokens" else name, columns(name, log))


def columns(name: str, log: list[Event]) -> Columns:
    """The columns of a table as plain lists, for whoever follows a run.

    Columns that no event has are left out, missing values are None. Costs in proportion to the events given: the run
    event and as many rounds as are asked for.
    """
    made = {"tokens": _tokens, "prompt_tokens": _prompt_tokens, "rounds": _rounds, "cache": _cache, "bits": _bits}
    if name in made:
        return made[name](log)
    if name == "events":
        return _stack((event, {}) for event in _of(log, "cache", "decision", "mark"))
    return _stack(({"round": event["round"]}, event[name]) for event in _of(log, "round") if event.get(name))


def _of(events: Iterable[Event], *kinds: str) -> Iterator[Event]:
    return (event for event in events if event["type"] in kinds)


def _stack(parts: Iterable[tuple[dict[str, Any], Columns]]) -> Columns:
    """Columns below each other: of every part its constants (repeated; alone, they are a row) and its columns; gaps
    become None."""
    out: Columns = {}
    total = 0
    for constants, columns in parts:
        n = len(next(iter(columns.values()), [None]))
        for name, values in {**columns, **{key: [value] * n for key, value in constants.items()}}.items():
            out.setdefault(name, [None] * total).extend(values)
        total += n
        for values in out.values():
            values.extend([None] * (total - len(values)))
    return out


def _tokens(log: list[Event]) -> Columns:
    run = log[0]
    prompt = len(run.get("prompt_ids") or ())
    decided = {event["round"]: event.get("action") for event in _of(log, "decision")}
    parts, index, last = [], 0, final(log)
    for event in _of(log, "round"):
        columns = dict(event.get("tokens", ()))
        n = len(columns.get("token_id", ()))
        index = event.get("index", index)
        if n:
            columns["text"] = _texts(event, columns, last)
            columns["index"] = list(range(index, index + n))
            columns |= _places(columns, prompt)
            if event.get("forwards"):
                cost = sum(is_target(run, phase, role) for phase, role, _ in _passes(event))
                columns["target_forwards"] = [cost] + [0] * (n - 1)
            parts.append(({"round": event["round"], "decision": decided.get(event["round"])}, columns))
        index += n
    return _stack(parts)


def _places(columns: Columns, prompt: int) -> Columns:
    """What follows from the index and the texts of tokens."""
    sizes = [len((text or "").encode("utf-8", "surrogatepass")) for text in columns["text"]]
    return {"bytes": sizes, "position": [prompt + place for place in columns["index"]]}


def _prompt_tokens(log: list[Event]) -> Columns:
    """The prompt's tokens from the second on, where `prompt_rows` asked for them; the index is negative."""
    prompt = len(log[0].get("prompt_ids") or ())
    for event in _of(log, "round"):
        if group := event.get("prompt"):
            columns = {**group, "index": list(range(1 - prompt, 0)), "source": ["prompt"] * (prompt - 1)}
            return columns | _places(columns, prompt) | {"round": [event["round"]] * (prompt - 1)}
    return {}


def _rounds(log: list[Event], peak: int = 0) -> Columns:
    run, parts = log[0], []
    for event in _of(log, "round"):
        row = {name: event.get(name) for name in ("mode", "stop_reason", "budget")}
        row |= {name: event.get(name, 0) for name in ("round", "drafted", "accepted", "emitted", "depth", "context")}
        row["bonus"] = event.get("bonus", False)
        row |= {f"{phase}_ms": value for phase, value in event.get("ms", {}).items()}
        if "rows" in event.get("forwards", ()):
            row |= {"rows_target": 0, "rows_draft": 0}
            for phase, role, n in _passes(event):
                row["rows_draft" if phase == "draft" or _drafts(run, role) else "rows_target"] += n or 0
        if event.get("cache"):
            row |= _footprint(run, event)
            row["peak_bytes"] = peak = max(peak, row["cache_bytes"])
        parts.append((row, {}))
    return _stack(parts)


def _footprint(run: Event, event: Event) -> dict[str, Any]:
    """Bytes of all caches after a round by tier, those of full ones, and the target's bits per live element."""
    device = host = target_bytes = elements = 0
    full: float | None = 0
    for role in event["cache"]:
        columns = _layers(run, event, role)
        if role != "memory":
            known = full is not None and None not in columns["full"]
            full = full + sum(columns["full"]) if known else None
        for tier, size, away in zip(columns["tier"], columns["bytes"], columns["host_bytes"], strict=True):
            away = size if tier == "host" else away
            device, host = device + size - away, host + away
        if role == "target":
            target_bytes, elements = sum(columns["held"]), sum(columns["elements"])
    resident = event.get("figures", {}).get("resident_bytes", device + host)
    width = 8 * target_bytes / elements if elements else None
    found = {"cache_bytes": device, "host_bytes": host, "resident_bytes": resident, "bits_per_element": width}
    return found | {"full_cache_bytes": full if full is None else round(full)}


def _layers(run: Event, event: Event, role: str) -> Columns:
    """The cache columns of one model after a round, one entry per layer; beside them `elements` (live ones), `held`
    (bytes without free slots and rows in flight) and `full` (bytes of all tokens in the model's own dtype)."""
    facts = model(run, role)
    columns = unpack_layers(event["cache"][role], facts)
    n = len(columns["live_slots"])
    columns["bytes"] = [sum(sizes) for sizes in zip(*(columns[kind] for kind in CACHE_KINDS), strict=True)]
    spare = zip(*(columns[kind] for kind in FREE), strict=True)
    columns["held"] = [size - sum(free) for size, free in zip(columns["bytes"], spare, strict=True)]
    width = facts.get("head_dim") or 0
    width = sum(width) if isinstance(width, (list, tuple)) else 2 * width
    heads = _per_layer(facts.get("kv_heads") or 0, n)
    columns["elements"] = [(live or 0) * h * width for live, h in zip(columns["live_slots"], heads, strict=True)]
    bits = facts.get("kv_bits") if width and facts.get("kv_heads") else None
    lengths = zip(columns["logical_length"], heads, strict=True)
    columns["full"] = [None if None in (n, bits) else n * h * width * bits / 8 for n, h in lengths]
    return columns


def _per_layer(value: Any, n: int) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value] * n


def _cache(log: list[Event]) -> Columns:
    """One row per round, model and layer."""
    run, parts = log[0], []
    for event in _of(log, "round"):
        for role in event.get("cache", ()):
            columns = _layers(run, event, role)
            pairs = zip(columns.pop("held"), columns.pop("elements"), strict=True)
            columns["bits_effective"] = [8 * size / live if live else None for size, live in pairs]
            columns["layer"] = list(range(len(columns["bytes"])))
            parts.append(({"round": event["round"], "model": role}, columns))
    return _stack(parts)


def _bits(log: list[Event]) -> Columns:
    """One row per layer, head and run of positions whose width changed: tokens newly committed, then other changes."""
    run, parts = log[0], []
    held: dict[str, list[int]] = {}  # role -> committed length per layer
    for event in _of(log, "round"):
        for role in event.get("cache", ()):
            columns = _layers(run, event, role)
            after = columns["logical_length"]
            if None not in after:
                parts.append(_appended(run, event, role, held.get(role, [0] * len(after)), columns))
                held[role] = after
        if columns := event.get("bits"):
            parts.append(({"round": event["round"]}, {"model": ["target"] * len(columns["start"])} | columns))
    return _stack(parts)


def _appended(run: Event, event: Event, role: str, before: list[int], columns: Columns) -> tuple[dict, Columns]:
    """The positions a round committed at the store's own width, for every layer and KV head."""
    facts, after = model(run, role), columns["logical_length"]
    heads = _per_layer(facts.get("kv_heads") or 1, len(after))
    rows: Columns = {name: [] for name in ("layer", "head", "start", "length", "bits_k", "bits_v")}
    for layer, (start, end) in enumerate(zip(before, after, strict=True)):
        width = facts.get("kv_bits", columns["bits_nominal"][layer])
        for head in range(heads[layer] if end > start else 0):
            for name, value in zip(rows, (layer, head, start, end - start, width, width), strict=True):
                rows[name].append(value)
    return {"round": event["round"], "model": role, "codec": "raw", "reason": "append"}, rows


def cache_bytes(run: Event, event: Event) -> int:
    """Bytes on the device after a round, of all caches."""
    return _footprint(run, event)["cache_bytes"] if event.get("cache") else 0


def rows(log: list[Event], peak: int = 0, empty: bool = False) -> list[dict[str, Any]]:
    """The tokens of one round as plain mappings: columns of the tokens table, then those of its round.

    log: the run event, that round, and what was recorded up to the next one. peak: most cache bytes before it.
    For conditions and inspectors that follow a run; an empty list where the round emitted nothing, or with `empty` the
    one row of its round, whose token columns are None. Missing values are absent keys or None.
    """
    whole = {name: values[0] for name, values in _rounds(log, peak).items()}
    columns = _tokens(log)
    n = len(columns.get("token_id", ()))
    if empty and not n:
        return [dict.fromkeys(column.name for column in TABLES["tokens"]) | whole]
    return [{**{name: values[i] for name, values in columns.items()}, **whole} for i in range(n)]
