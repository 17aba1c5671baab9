"""A run on the clock: its phases as spans, and those spans in the Trace Event format that Perfetto and Chrome open.

Source of the format: "Trace Event Format", Google, the JSON object form: complete events (`X`), counters (`C`),
instants (`i`) and metadata (`M`), times in microseconds.
"""

from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from workbench.trace.trace import Trace

AFTER = ("verify", "commit", "cache")  # phases that follow the forward passes of a round
COLUMNS = ("phase", "model", "round", "start_ms", "length_ms", "place")
FACTS = ("rows", "context", "flops", "weight_bytes", "kv_read_bytes", "kv_write_bytes", "implementation")
COUNTS = ("mode", "drafted", "accepted", "emitted", "bonus", "stop_reason", "depth", "context", "bits_per_element")
COUNTERS = {"cache": ("cache_bytes", "host_bytes"), "draft": ("drafted", "accepted")}
PROCESS, ROUNDS, HOST = 1, 1, 2


def spans(trace: "Trace") -> pd.DataFrame:
    """Where the time of a run went: a row per round, per forward pass, and per phase that followed a round's passes.

    Columns: `phase` (`round` for the whole round), `model` (empty for what is no forward pass), `round`, `start_ms`
    (from the start of the run), `length_ms`, `place` (row of the forwards table; -1 for what is none).

    A trace holds how long things took and in which order, not when they began. Rounds are laid one after another, each
    as long as recorded (or as its parts, where they are longer). In a round the passes follow each other; what else the
    drafter did is a gap behind its passes; then come verification, commit and cache maintenance.
    """
    passes = trace.forwards.dropna(subset=["wall_ms"])
    of = dict(list(passes.groupby("round")))
    found: list[tuple] = []
    now = 0.0
    for row in trace.rounds.select_dtypes("number").fillna(0.0).to_dict("records"):
        number, start = row["round"], now
        parts = of.get(number, passes.iloc[:0])  # beside: time of the drafter, less that of its passes
        beside = max(0.0, row["draft_ms"] - parts["wall_ms"][parts["phase"] == "draft"].sum())
        for place, phase, model, length in parts[["phase", "model", "wall_ms"]].itertuples():
            if phase == "target":  # the drafter is done
                now, beside = now + beside, 0.0
            found.append((phase or "", model or "", number, now, length, place))
            now += length
        for phase in AFTER:
            if length := row[f"{phase}_ms"]:
                found.append((phase, "", number, now, length, -1))
                now += length
        now = max(now, start + row["total_ms"])
        found.append(("round", "", number, start, now - start, -1))
    return pd.DataFrame(found, columns=list(COLUMNS))


def events(trace: "Trace") -> dict[str, Any]:
    """The run as one JSON object in the Trace Event format.

    Tracks: the rounds (with their counts and new text), the phases on the host, and each model's forward passes.
    Counters: bytes of the cache, tokens drafted and accepted. Instants: cache, decision and mark events, at the end of
    their round.
    """
    found, passes = spans(trace), trace.forwards
    whole = found[found["phase"] == "round"]
    ends = dict(zip(whole["round"], whole["start_ms"] + whole["length_ms"], strict=True))
    rounds = trace.rounds.set_index("round")
    texts = trace.tokens.groupby("round")["text"].agg(lambda parts: "".join(text or "" for text in parts))
    tracks = {"rounds": ROUNDS, "host": HOST}
    out = []
    for phase, model, number, start, length, place in found.itertuples(index=False):
        if phase == "round":
            track = ROUNDS
            facts = _known(rounds.loc[number], COUNTS) | {"text": texts.get(number, "")}
            phase = f"round {number}"
            for name, columns in COUNTERS.items():
                if counts := _known(rounds.loc[number], columns):
                    out.append(_event("C", name, 0, ends[number], args=counts))
        elif place < 0:
            track, facts = HOST, {"round": number}
        else:
            track = tracks.setdefault(f"model {model}".strip(), len(tracks) + 1)
            facts = {"round": number, **_known(passes.loc[place], FACTS)}
        out.append(_event("X", phase or "forward", track, start, dur=_micro(length), args=facts))
    for event in trace.log:
        if event["type"] in ("cache", "decision", "mark"):
            facts = {key: value for key, value in event.items() if key != "type"}
            name = str(event.get("op") or event.get("action") or event.get("kind") or event["type"])
            at = ends.get(event.get("round", 0) - (event["type"] == "mark"), 0.0)  # a mark counts the rounds before it
            out.append(_event("i", name, ROUNDS, at, cat=event["type"], s="t", args=facts))
    out.sort(key=lambda event: event["ts"])
    named = [_event("M", "process_name", 0, 0.0, args={"name": f"decoding workbench {trace.id}".strip()})]
    named += [_event("M", "thread_name", track, 0.0, args={"name": name}) for name, track in tracks.items()]
    decoder = (trace.run.get("decoder") or {}).get("name")
    about = {"trace": trace.id, "decoder": decoder, "device": trace.run.get("device"), "seed": trace.run.get("seed")}
    return {"traceEvents": named + out, "displayTimeUnit": "ms", "otherData": about}


def _event(kind: str, name: str, track: int, at_ms: float, **more: Any) -> dict[str, Any]:
    return {"ph": kind, "name": name, "cat": "decoding", "pid": PROCESS, "tid": track, "ts": _micro(at_ms), **more}


def _micro(milliseconds: float) -> float:
    return round(1000 * milliseconds, 3)


def _known(row: pd.Series, names: tuple[str, ...]) -> dict[str, Any]:
    """The values of a row that are there, as JSON holds them."""
    found = {name: row[name] for name in names if not pd.isna(row[name])}
    return {name: value.item() if hasattr(value, "item") else value for name, value in found.items()}
