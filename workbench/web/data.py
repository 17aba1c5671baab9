"""What the browser draws of a trace, as plain JSON values: one contract for the app, the widget and the capsule.

`payload(trace)` is a mapping:

- `version`: 1; `id`: name of the trace; `since`: first round in here. A receiver that holds rounds below `since` of the
  same `id` drops what it has from there on and appends; `since == 0` replaces everything.
- `length`, `rounds_recorded`: new tokens and rounds of the whole trace; `first`: index of the first token in here.
- `ended`: why the run is over, null while it goes on.
- `tokens`, `rounds`, `drafts`, `forwards`: columns, name -> list, one entry per row, null where unknown; a column known
  nowhere is left out. Names and units are those of `workbench.trace.schema`, restricted to `COLUMNS`; `tokens.kind`
  (`drafted`, `bonus`, `residual`, `target`, `plain`) says how the token came about, whatever its drafter's name.
- `names`: token id -> text, for the candidates in `topk_raw` and `topk_sampled`.
- `colours`: group -> name -> colour, for sources, and for fates.

Only where `since == 0`, as it does not change:

- `prompt`: the end of the prompt's text; `decoder`, `claim`: what the run says; `colours.fate`.
- `signals`: name -> {of, label, unit, colour, low, high}: by what tokens can be coloured; `of` names `table.column`,
  `low` and `high` the ends of the scale (null: those of the data).

Whoever sends it may add `cursor` (tokens before the run's own cursor; later ones are drawn faint), `selected` (the
token to inspect; null follows the cursor), `follow` (scroll to it) and `status` ({running, ended, message}).
"""

import html
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.trace import Trace, tables
from workbench.trace.schema import SOURCES
from workbench.views.palette import PALETTE, colours

__all__ = ["COLUMNS", "SIGNALS", "payload", "plain", "to_json"]

PROMPT_TAIL = 600  # characters of the prompt shown before the tokens
COLUMNS = {
    "tokens": (
        "position", "round", "token_id", "text", "source", "entropy_raw_nats", "entropy_sampled_nats", "surprisal_nats",
        "p_raw", "p_sampled", "rank", "margin", "topk_raw", "topk_sampled", "cut_by", "keep_size", "decision",
    ),
    "rounds": (
        "round", "mode", "drafted", "accepted", "emitted", "total_ms", "cache_bytes", "host_bytes", "bits_per_element",
    ),
    "drafts": ("round", "node", "parent", "depth", "text", "drafter", "q", "p", "fate", "reason"),
    "forwards": ("round", "phase", "model", "rows", "implementation"),
}  # fmt: skip
_BLUE, _ORANGE = PALETTE["signal"]["entropy_raw"], PALETTE["signal"]["entropy_sampled"]
_GREEN, _PINK, _RED = PALETTE["signal"]["accepted"], PALETTE["signal"]["bits"], PALETTE["source"]["residual"]
# name -> column, label, unit, colour, lower and upper end of the scale
SIGNALS = {
    "entropy": ("tokens.entropy_raw_nats", "entropy, raw law", "nats", _BLUE, 0, None),
    "sampled": ("tokens.entropy_sampled_nats", "entropy, sampled law", "nats", _ORANGE, 0, None),
    "surprisal": ("tokens.surprisal_nats", "surprisal", "nats", _RED, 0, None),
    "p": ("tokens.p_raw", "probability", "", _GREEN, 0, 1),
    "rank": ("tokens.rank", "rank", "", _RED, 1, None),
    "cache": ("rounds.cache_bytes", "cache", "bytes", _ORANGE, None, None),
    "bits": ("rounds.bits_per_element", "bits / element", "bits", _PINK, 0, None),
}
DIGITS = 5
EMBEDDED = ("embedded", "embedded-draft")  # names of the models whose tokenizer ships with the package
Reader = Callable[[int], str]


def payload(trace: Trace, since: int = 0, text_of: Reader | None = None) -> dict[str, Any]:
    """The rounds of a trace from number `since` on, as the module draws them; see the contract above.

    text_of: text of a token id, for candidates that were not taken; by default the embedded tokenizer's where one of
        its models ran, else what the trace itself says about an id.
    Costs in proportion to the rounds asked for.
    """
    whole = list(trace.log)  # as it is now: a run may go on in another thread
    log = _recent(whole, since)
    frames = {name: getattr(tables, name)(log) for name in COLUMNS}
    frames["tokens"]["kind"] = _kinds(frames["tokens"], frames["rounds"])
    found = {name: _columns(frames[name], name) for name in COLUMNS}
    last = next((event for event in reversed(whole) if event["type"] == "round"), None)
    length = last.get("index", 0) + last["emitted"] if last else 0
    sources = [source or "unknown" for source in found["tokens"].get("source", ())]
    data = {
        "version": 1,
        "id": trace.id,
        "since": since,
        "first": length - len(frames["tokens"]),
        "length": length,
        "rounds_recorded": last["round"] + 1 if last else 0,
        "ended": (Trace(whole).end or {}).get("reason"),
        **found,
        "names": _names(found["tokens"], text_of or _reader(trace)),
        "colours": {"source": colours("source", list(dict.fromkeys(sources)))},
    }
    return data if since else _with_head(data, trace)


def _with_head(data: dict[str, Any], trace: Trace) -> dict[str, Any]:
    """What does not change while a run goes on."""
    tail = trace.prompt[-PROMPT_TAIL:]
    names = ("of", "label", "unit", "colour", "low", "high")
    return {
        **data,
        "prompt": tail if tail == trace.prompt else f"…{tail}",
        "decoder": str((trace.run.get("decoder") or {}).get("name") or "unnamed"),
        "claim": trace.run.get("claim"),
        "signals": {name: dict(zip(names, entry, strict=True)) for name, entry in SIGNALS.items()},
        "colours": {**data["colours"], "fate": PALETTE["fate"]},
    }


def to_json(data: dict[str, Any]) -> str:
    """Compact JSON in ASCII, in which no character means anything to HTML."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plain(trace: Trace) -> str:
    """The strip without a script: inert HTML in which underlines and letters say what colours say elsewhere."""
    tokens = trace.tokens
    kinds = _kinds(tokens, trace.rounds)
    highest = tokens["entropy_raw_nats"].max()
    spans = []
    for text, kind, entropy in zip(tokens["text"].fillna(""), kinds, tokens["entropy_raw_nats"], strict=True):
        share = entropy / highest if highest > 0 and not math.isnan(entropy) else 0
        look = f"background:rgba(0,114,178,{0.5 * share:.2f})"
        line = {"drafted": ";text-decoration:underline", "residual": ";text-decoration:underline wavy"}.get(kind, "")
        spans.append(f'<span style="{look}{line}">{html.escape(text)}</span>')
    body = f'<span style="opacity:.6">{html.escape(trace.prompt[-PROMPT_TAIL:])}</span>{"".join(spans)}'
    note = "darker: higher entropy; underlined: drafted and kept; wavy: in place of a refused draft"
    return f'<pre style="white-space:pre-wrap">{body}</pre><p>{note}</p>'


def _recent(log: list[dict], since: int) -> list[dict]:
    """The run event and everything from round `since` on."""
    start = len(log)
    for place in range(len(log) - 1, 0, -1):
        if log[place]["type"] == "round":
            if log[place]["round"] < since:
                break
            start = place
    return [log[0], *log[start:]]


def _kinds(tokens: pd.DataFrame, rounds: pd.DataFrame) -> list[str]:
    """How each token came about; in a round that drafted, a name that is no source of its own is a drafter's."""
    drafted = dict(zip(rounds["round"], rounds["drafted"], strict=True))
    pairs = zip(tokens["source"], tokens["round"], strict=True)
    return [source if source in SOURCES else "drafted" if drafted.get(round) else "plain" for source, round in pairs]


def _columns(frame: pd.DataFrame, name: str) -> dict[str, list]:
    wanted = (*COLUMNS[name], "kind") if name == "tokens" else COLUMNS[name]
    columns = {column: [_value(value) for value in frame[column].tolist()] for column in wanted}
    return {column: values for column, values in columns.items() if any(value is not None for value in values)}


def _value(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f"{value:.{DIGITS}g}")


def _names(tokens: dict[str, list], text_of: Reader) -> dict[str, str]:
    laws = (law for name in ("topk_raw", "topk_sampled") for law in tokens.get(name, ()) if law)
    return {str(token): text_of(token) for token in sorted({int(token) for ids, _ in laws for token in ids})}


def _reader(trace: Trace) -> Reader:
    """Texts of an embedded model's ids; of any other's those that the trace itself has, else the number."""
    if tables.model(trace.run, "target").get("name") in EMBEDDED:
        return lambda token: _embedded().decode([token])
    known: dict[int, str] = {}
    for frame in (trace.drafts, trace.tokens):
        named = frame[frame["text"].notna() & frame["token_id"].notna()]
        known |= {int(token): text for token, text in zip(named["token_id"], named["text"], strict=True) if text}
    return lambda token: known.get(token) or f"id {token}"


@cache
def _embedded() -> Any:
    """The tokenizer that ships with the package, read without loading a model."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(__file__).parent.parent / "pretrained" / "tokenizer" / "tokenizer.json"))
