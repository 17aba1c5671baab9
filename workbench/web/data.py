"""What the browser draws of a trace, as plain JSON values: one contract for the app, the widget and the capsule.

`payload(trace)` is a mapping:

- `version`: 1; `id`: name of the trace; `since`: first round in here. A receiver that holds rounds below `since` of the
  same `id` drops what it has from there on and appends; `since == 0` replaces everything.
- `length`, `rounds_recorded`: new tokens and rounds of the whole trace; `first`: index of the first token in here.
- `ended`: why the run is over, null while it goes on.
- `tokens`, `rounds`, `drafts`, `hypotheses`, `forwards`: columns, name -> list, one entry per row, null where unknown;
  a column known nowhere is left out. Names and units are those of `workbench.trace.schema`, restricted to `COLUMNS`;
  `tokens.kind` (`drafted`, `bonus`, `residual`, `target`, `plain`) says how the token came about, whatever its
  drafter's name.
- `names`: token id -> text, for the candidates in `topk_raw` and `topk_sampled`.
- `colours`: group -> name -> colour, for sources, and for fates.

Only where `since == 0`, as it does not change:

- `prompt`: the end of the prompt's text; where the distributions at the prompt were recorded (`prompt_rows`), columns
  like `tokens` over its last `PROMPT_ROWS` tokens, with their negative `index`.
- `decoder`, `guarantee`: what the run says; `colours.fate`.
- `signals`: name -> {of, label, unit, colour, low, high}: by what tokens can be coloured; `of` names `table.column`,
  `low` and `high` the ends of the scale (null: those of the data).

Whoever sends it may add `cursor` (tokens before the run's own cursor; later ones are drawn faint), `place` (of that
cursor: `round` and `token`, how many lie before it; `at`, the round it is in or behind, null at the start; `tip`,
whether nothing lies ahead), `selected` (the token to inspect; null follows the cursor), `follow` (scroll to it) and
`status` ({running, ended, message}).
"""

import html
import json
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from workbench.errors import BadTrace
from workbench.trace import Trace, tables
from workbench.trace.forms import writable
from workbench.trace.schema import SOURCES, TABLES
from workbench.views.palette import PALETTE, colours

__all__ = ["COLUMNS", "SIGNALS", "payload", "plain", "reader", "to_json"]

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
    "hypotheses": ("round", "id", "parent", "depth", "token_id", "text", "logp", "score", "role", "fate", "reason"),
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
    log, index = trace.log, trace.index
    rounds = len(index)  # a run may go on in another thread: what it adds from now on is left out
    start = index[rounds - 1].place + 1 if rounds else 1
    rest = [*takewhile(lambda event: event["type"] != "round", log[start:])]
    first = bisect_left(range(rounds), since, key=lambda place: log[index[place].place]["round"])  # some may be lost
    recent = [log[0], *(log[index[first].place : start] if first < rounds else ()), *rest]
    last = log[start - 1] if rounds else {}
    found = {name: tables.columns(name, recent) for name in COLUMNS}
    count = len(found["tokens"].get("round", ()))
    found["tokens"]["kind"] = list(_kinds(found["tokens"], found["rounds"]))
    found = {name: _tidy(name, columns) for name, columns in found.items()}
    length = last.get("index", 0) + last.get("emitted", 0)
    data = {
        "version": 1,
        "id": trace.id,
        "since": since,
        "first": length - count,
        "length": length,
        "rounds_recorded": last.get("round", -1) + 1,
        "ended": next((event.get("reason") for event in reversed(rest) if event["type"] == "end"), None),
        **found,
    }
    if not since:
        names = ("of", "label", "unit", "colour", "low", "high")
        data["prompt"], data["guarantee"] = _prompt(trace), trace.run.get("guarantee")
        data["decoder"] = str((trace.run.get("decoder") or {}).get("name") or "unnamed")
        data["signals"] = {name: dict(zip(names, entry, strict=True)) for name, entry in SIGNALS.items()}
    dists = [found["tokens"], *(part for part in (data.get("prompt"),) if isinstance(part, dict))]
    sources = dict.fromkeys(source or "unknown" for part in dists for source in part.get("source", ()))
    known = (dist for part in dists for name in ("topk_raw", "topk_sampled") for dist in part.get(name, ()) if dist)
    text_of = text_of or reader(trace)
    data["names"] = {str(token): text_of(token) for token in sorted({int(token) for ids, _ in known for token in ids})}
    data["colours"] = {"source": colours("source", list(sources))} | ({} if since else {"fate": PALETTE["fate"]})
    return data


def _prompt(trace: Trace) -> str | Columns:
    """The end of the prompt: its text, or where its distributions were recorded, its tokens."""
    rows = trace.prompt_tokens
    if rows.empty:
        tail = trace.prompt[-PROMPT_TAIL:]
        return tail if tail == trace.prompt else f"…{tail}"
    shown = rows.tail(PROMPT_ROWS)
    texts = "".join(shown["text"].fillna(""))
    before = trace.prompt.removesuffix(texts) if trace.prompt.endswith(texts) else ""
    first = {"text": before if len(shown) == len(rows) else "…", "source": "prompt"}  # no distribution before it
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


def reader(trace: Trace) -> Reader:
    """The texts of an embedded model's ids; of any other's those that the trace itself has, else the number."""
    if tables.model(trace.run, "target").get("name") in EMBEDDED:
        return _embedded()
    read, known = _heard.get(trace, (1, {}))  # read on from where it was read last
    size = len(trace.log)
    for event in trace.log[read:size]:
        for group in ("drafts", "hypotheses", "tokens", "prompt") if event["type"] == "round" else ():
            columns = event.get(group, {})
            if columns.keys() >= {"text", "token_id"}:
                known |= {i: text for i, text in zip(columns["token_id"], columns["text"], strict=True) if text}
    _heard[trace] = (size, known)
    return lambda token: known.get(token) or f"id {token}"


@cache
def _embedded() -> Reader:
    """The texts of the tokenizer that ships with the package, read without loading a model."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(__file__).parent.parent / "pretrained" / "tokenizer" / "tokenizer.json"))
    return cache(lambda token: tokenizer.decode([token], skip_special_tokens=False))
