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

- `prompt`: the end of the prompt's text; where the distributions at the prompt were recorded (`prompt_rows`), columns
  like
  `tokens` over its last `PROMPT_ROWS` tokens, with their negative `index`. `decoder`, `guarantee`: what the run says;
  `colours.fate`.
- `signals`: name -> {of, label, unit, colour, low, high}: by what tokens can be coloured; `of` names `table.column`,
  `low` and `high` the ends of the scale (null: those of the data).

Whoever sends it may add `cursor` (tokens before the run's own cursor; later ones are drawn faint), `selected` (the
token to inspect; null follows the cursor), `follow` (scroll to it) and `status` ({running, ended, message}).
"""

import html
import json
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from workbench.errors import BadTrace
from workbench.trace import Trace, tables
from workbench.trace.forms import writable
from workbench.trace.schema import SOURCES, TABLES
from workbench.views.palette import PALETTE, colours

__all__ = ["COLUMNS", "SIGNALS", "payload", "plain", "to_json"]

PROMPT_TAIL = 600  # characters of the prompt shown before the tokens
PROMPT_ROWS = 512  # tokens of the prompt shown there with their distributions
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
    "entropy": ("tokens.entropy_raw_nats", "entropy, raw distribution", "nats", _BLUE, 0, None),
    "sampled": ("tokens.entropy_sampled_nats", "entropy, sampled distribution", "nats", _ORANGE, 0, None),
    "surprisal": ("tokens.surprisal_nats", "surprisal", "nats", _RED, 0, None),
    "p": ("tokens.p_raw", "probability", "", _GREEN, 0, 1),
    "rank": ("tokens.rank", "rank", "", _RED, 1, None),
    "cache": ("rounds.cache_bytes", "cache", "bytes", _ORANGE, None, None),
    "bits": ("rounds.bits_per_element", "bits / element", "bits", _PINK, 0, None),
}
DIGITS = 5
EMBEDDED = ("embedded", "embedded-draft")  # names of the models whose tokenizer ships with the package
NUMBERS = {table: {c.name for c in TABLES[table] if c.type in ("int", "id", "float")} for table in COLUMNS}
Event = dict[str, Any]
Columns = dict[str, list]
Reader = Callable[[int], str]
_heard: WeakKeyDictionary[Trace, tuple[int, dict[int, str]]] = WeakKeyDictionary()  # events read, texts by token id


def payload(trace: Trace, since: int = 0, text_of: Reader | None = None) -> dict[str, Any]:
    """The rounds of a trace from number `since` on, as the module draws them; see the contract above.

    text_of: text of a token id, for candidates that were not taken; by default the embedded tokenizer's where one of
        its models ran, else what the trace itself says about an id.
    Costs in proportion to the rounds asked for, not to the trace. Raises BadTrace where a column is damaged.
    """
    log = trace.log
    recent, last, end = _recent(log, since)
    found = {name: tables.columns(name, recent) for name in COLUMNS}
    count = len(found["tokens"].get("round", ()))
    found["tokens"]["kind"] = list(_kinds(found["tokens"], found["rounds"]))
    found = {name: _tidy(name, columns) for name, columns in found.items()}
    length = last.get("index", 0) + last["emitted"] if last else 0
    data = {
        "version": 1,
        "id": trace.id,
        "since": since,
        "first": length - count,
        "length": length,
        "rounds_recorded": last["round"] + 1 if last else 0,
        "ended": end.get("reason"),
        **found,
    }
    data |= {} if since else _head(trace)
    dists = [found["tokens"], *(part for part in (data.get("prompt"),) if isinstance(part, dict))]
    sources = dict.fromkeys(source or "unknown" for part in dists for source in part.get("source", ()))
    data["names"] = _names(dists, text_of or reader(trace))
    data["colours"] = {"source": colours("source", list(sources))} | ({} if since else {"fate": PALETTE["fate"]})
    return data


def _head(trace: Trace) -> dict[str, Any]:
    """What does not change while a run goes on."""
    names = ("of", "label", "unit", "colour", "low", "high")
    return {
        "prompt": _prompt(trace),
        "decoder": str((trace.run.get("decoder") or {}).get("name") or "unnamed"),
        "guarantee": trace.run.get("guarantee"),
        "signals": {name: dict(zip(names, entry, strict=True)) for name, entry in SIGNALS.items()},
    }


def _prompt(trace: Trace) -> str | Columns:
    """The end of the prompt: its text, or where its distributions were recorded, its tokens."""
    rows = trace.prompt_tokens
    if rows.empty:
        tail = trace.prompt[-PROMPT_TAIL:]
        return tail if tail == trace.prompt else f"…{tail}"
    shown = rows.tail(PROMPT_ROWS)
    texts = "".join(shown["text"].fillna(""))
    before = trace.prompt.removesuffix(texts) if trace.prompt.endswith(texts) else ""
    first = {
        "text": before if len(shown) == len(rows) else "…",
        "source": "prompt",
    }  # no distribution: nothing came before it
    first |= {name: int(shown[name].iloc[0]) - 1 for name in ("index", "position")}
    first |= {"round": int(shown["round"].iloc[0]), "token_id": trace.run["prompt_ids"][-len(shown) - 1]}
    wanted = ("index", *COLUMNS["tokens"])
    return _tidy("tokens", {name: [first.get(name), *shown[name].tolist()] for name in wanted}, wanted)


def to_json(data: dict[str, Any]) -> str:
    """Compact JSON in ASCII, in which no character means anything to HTML."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plain(trace: Trace) -> str:
    """The token view without a script: inert HTML in which underlines and letters say what colours say elsewhere."""
    tokens, rounds = trace.tokens, trace.rounds
    kinds = _kinds(tokens.to_dict("list"), rounds.to_dict("list"))
    highest = tokens["entropy_raw_nats"].max()
    spans = []
    for text, kind, entropy in zip(tokens["text"].fillna(""), kinds, tokens["entropy_raw_nats"], strict=True):
        share = entropy / highest if highest > 0 and not math.isnan(entropy) else 0
        look = f"background:rgba(0,114,178,{0.5 * share:.2f})"
        line = {"drafted": ";text-decoration:underline", "residual": ";text-decoration:underline wavy"}.get(kind, "")
        spans.append(f'<span style="{look}{line}">{html.escape(text)}</span>')
    body = f'<span style="opacity:.6">{html.escape(trace.prompt[-PROMPT_TAIL:])}</span>{"".join(spans)}'
    note = "darker: higher entropy; underlined: drafted and kept; wavy: in place of a refused draft"
    return writable(f'<pre style="white-space:pre-wrap">{body}</pre><p>{note}</p>')


def _recent(log: list[Event], since: int) -> tuple[list[Event], Event | None, Event]:
    """The run event with everything from round `since` on; the last round, None before the first; and the end, if any.

    A run may go on in another thread: what it adds from now on is left out.
    """
    size = start = len(log)
    last, end = None, {}
    for place in range(size - 1, 0, -1):
        event = log[place]
        if event["type"] == "end" and last is None:
            end = end or event
        elif event["type"] == "round":
            last = last or event
            if event["round"] < since:
                break
            start = place
    return [log[0], *log[start:size]], last, end


def _kinds(tokens: Columns, rounds: Columns) -> Iterator[str]:
    """How each token came about; in a round that drafted, a name that is no source of its own is a drafter's."""
    drafted = dict(zip(rounds.get("round", ()), rounds.get("drafted", ()), strict=True))
    sources = tokens.get("source") or [None] * len(tokens.get("round", ()))
    for source, round in zip(sources, tokens.get("round", ()), strict=True):
        yield source if source in SOURCES else "drafted" if drafted.get(round) else "plain"


def _tidy(table: str, columns: Columns, wanted: Iterable[str] = ()) -> Columns:
    """The columns that are drawn, as JSON holds them; those without a value left out."""
    tidy = {}
    for name in wanted or (*COLUMNS[table], *(("kind",) if table == "tokens" else ())):
        values = columns.get(name, ())
        try:
            values = [_number(value) for value in values] if name in NUMBERS[table] else values
        except (TypeError, ValueError):
            raise BadTrace(f"damaged trace: {table}.{name} holds values that are not numbers") from None
        if any(value is not None for value in values):
            tidy[name] = values
    return tidy


def _number(value: float | None) -> float | None:
    if value is None or isinstance(value, int):
        return value
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f"{value:.{DIGITS}g}")


def _names(parts: Iterable[Columns], text_of: Reader) -> dict[str, str]:
    dists = (dist for part in parts for name in ("topk_raw", "topk_sampled") for dist in part.get(name, ()) if dist)
    return {str(token): text_of(token) for token in sorted({int(token) for ids, _ in dists for token in ids})}


def reader(trace: Trace) -> Reader:
    """The texts of an embedded model's ids; of any other's those that the trace itself has, else the number."""
    if tables.model(trace.run, "target").get("name") in EMBEDDED:
        return _text
    known = _known(trace)
    return lambda token: known.get(token) or f"id {token}"


def _known(trace: Trace) -> dict[int, str]:
    """The texts a trace has of token ids, read on from where it was read last."""
    read, known = _heard.get(trace, (1, {}))
    size = len(trace.log)
    for event in trace.log[read:size]:
        for group in ("drafts", "tokens", "prompt") if event["type"] == "round" else ():
            columns = event.get(group, {})
            if columns.keys() >= {"text", "token_id"}:
                known |= {i: text for i, text in zip(columns["token_id"], columns["text"], strict=True) if text}
    _heard[trace] = (size, known)
    return known


@cache
def _text(token: int) -> str:
    return _embedded().decode([token], skip_special_tokens=False)


@cache
def _embedded() -> Any:
    """The tokenizer that ships with the package, read without loading a model."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(__file__).parent.parent / "pretrained" / "tokenizer" / "tokenizer.json"))
