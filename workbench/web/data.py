"""What the browser draws of a trace, as plain JSON values: one contract for the app, the widget and the capsule.

`payload(trace)` is a mapping:

- `version`: 2; `id`: name of the trace; `since`: first round in here. A receiver that holds rounds below `since` of the
  same `id` drops what it has from there on and appends; `since == 0` replaces everything.
- `length`, `rounds_recorded`: new tokens and rounds of the whole trace; `first`: index of the first token in here.
- `ended`: why the run is over, null while it goes on.
- `tokens`, `rounds`, `drafts`, `hypotheses`, `canvas`, `forwards`, `decisions`: columns, name -> list, one entry per
  row, null where unknown; a column known nowhere is left out. Names and units are those of `workbench.trace.schema`,
  restricted to `COLUMNS`; columns of tokens that the schema does not know, a plug-in's, come too if they are numbers.
  Further: `tokens.kind` (`drafted`, `bonus`, `residual`, `target`, `plain`) says how the token came about, whatever its
  drafter's name; `rounds.target_bytes` (without free slots), `free_bytes`, `others_bytes` (of other models) and
  `target_full_bytes` split the cache's bytes, both tiers together; `units_held`, `units_read` (pages or slots, over all
  layers) and `bytes_fetched` are what the target's attention had, read, and got from another tier.
- `slots`: what happened to the slots of the target's cache, columns as in `workbench.trace.slots`.
- `names`: token id -> text, for the candidates in `topk_raw` and `topk_sampled`.
- `phase`: given as `upto`, the phase of the last round up to which all this goes, as an index into `PHASES`; else null.
  What a later phase decides is not in here.

Only where `since == 0`, as it does not change:

- `prompt`: the end of the prompt's text; where the distributions at the prompt were recorded (`prompt_rows`), columns
  like `tokens` over its last `PROMPT_ROWS` tokens, with their negative `index`. `prompt_tokens`: how many it has.
- `decoder`, `guarantee`, `max_new_tokens`: what the run says; `layers`, `heads`: of the target's cache.
- `marks`: where the run branched off or a token was forced, {index, text}.
- `signals`: name -> {of, label, unit, hue, low, high}: by what tokens can be coloured; `of` names `table.column`, `hue`
  the palette's, `low` and `high` the ends of the scale (null: those of the data).

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
from functools import cache, partial
from itertools import takewhile
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from workbench.errors import BadTrace
from workbench.trace import Trace, tables
from workbench.trace.forms import writable
from workbench.trace.schema import SOURCES, TABLES
from workbench.trace.slots import changes

PROMPT_TAIL = 600  # characters of the prompt shown before the tokens
PROMPT_ROWS = 512  # tokens of the prompt shown there with their distributions
PHASES = ("draft", "verify", "accept", "commit", "cache")  # views of one recorded round, in the order of its work
DRAFT, VERIFY, ACCEPT, COMMIT, CACHE = range(len(PHASES))
COLUMNS = {
    "tokens": (
        "position", "round", "token_id", "text", "source", "entropy_raw_nats", "entropy_sampled_nats", "surprisal_nats",
        "p_raw", "p_sampled", "rank", "margin", "topk_raw", "topk_sampled", "cut_by", "keep_size", "allowed_count",
        "allowed_mass", "exit_layer", "layers_run",
    ),
    "rounds": (
        "round", "mode", "drafted", "accepted", "emitted", "depth", "context", "draft_ms", "target_ms", "verify_ms",
        "commit_ms", "cache_ms", "total_ms", "cache_bytes", "host_bytes", "bits_per_element",
    ),
    "drafts": ("round", "node", "parent", "depth", "token_id", "text", "drafter", "q", "p", "fate", "reason", "u"),
    "hypotheses": ("round", "id", "parent", "depth", "token_id", "text", "logp", "score", "role", "fate", "reason"),
    "canvas": ("round", "position", "block", "text", "confidence", "state"),
    "forwards": ("round", "phase", "model", "rows", "wall_ms", "kv_read_bytes", "implementation"),
    "decisions": ("round", "controller", "action", "threshold", "signals"),
}  # fmt: skip
PARTS = ("target_bytes", "free_bytes", "others_bytes", "target_full_bytes")  # of a round's cache
READS = {"units_held": "held", "units_read": "read", "bytes_fetched": "bytes_fetched"}  # sums over a round's reads
# the phase from which on a column of an open round is known; what is not named here, from the last on
KNOWN = {
    "rounds": dict.fromkeys(("round", "drafted", "depth", "draft_ms"), DRAFT) | {"target_ms": VERIFY}
    | dict.fromkeys(("accepted", "verify_ms"), ACCEPT) | dict.fromkeys(("emitted", "commit_ms", "context"), COMMIT),
    "drafts": {"p": VERIFY} | dict.fromkeys(("fate", "reason", "u"), ACCEPT),
}  # fmt: skip
PASSED = {"draft": DRAFT, "commit": COMMIT}  # likewise a forward, by its own phase; others from `VERIFY` on
# name -> column, label, unit, hue, lower and upper end of the scale
SIGNALS = {
    "entropy": ("tokens.entropy_raw_nats", "entropy", "nats", "entropy", 0, None),
    "sampled": ("tokens.entropy_sampled_nats", "entropy, sampled distribution", "nats", "entropy", 0, None),
    "surprisal": ("tokens.surprisal_nats", "surprisal", "nats", "entropy", 0, None),
    "p": ("tokens.p_raw", "probability", "", "entropy", 0, 1),
    "rank": ("tokens.rank", "rank", "", "entropy", 1, None),
    "cache": ("rounds.cache_bytes", "KV cache", "bytes", "cache", None, None),
    "bits": ("rounds.bits_per_element", "bits / element", "bits", "bits", 0, None),
}
DIGITS = 5
EMBEDDED = ("embedded", "embedded-draft")  # names of the models whose tokenizer ships with the package
NUMBERS = {
    table: {c.name for c in TABLES[table] if c.type in ("int", "id", "float")} for table in COLUMNS if table in TABLES
}
NUMBERS["rounds"] |= {*PARTS, *READS}
SCHEMA = {column.name for column in TABLES["tokens"]}
Event = dict[str, Any]
Columns = dict[str, list]
Reader = Callable[[int], str]
_heard: WeakKeyDictionary[Trace, tuple[int, dict[int, str]]] = WeakKeyDictionary()  # events read, texts by token id


def payload(
    trace: Trace, since: int = 0, text_of: Reader | None = None, upto: tuple[int, int] | None = None
) -> dict[str, Any]:
    """The rounds of a trace from number `since` on, as the module draws them; see the contract above.

    text_of: text of a token id, for candidates that were not taken; by default the embedded tokenizer's where one of
        its models ran, else what the trace itself says about an id.
    upto: the last round, and the phase of it (index into `PHASES`), that are shown; None for all there is.
    Costs in proportion to the rounds asked for, not to the trace. Raises BadTrace where a column is damaged.
    """
    log, index = trace.log, trace.index
    rounds = len(index)  # a run may go on in another thread: what it adds from now on is left out
    place = partial(bisect_left, range(rounds), key=lambda place: log[index[place].place]["round"])  # some may be lost
    if upto is not None:
        rounds = min(rounds, place(upto[0] + 1))
    start = index[rounds - 1].place + 1 if rounds else 1
    rest = [*takewhile(lambda event: event["type"] != "round", log[start:])]
    first = min(rounds, place(since))
    recent = [log[0], *(log[index[first].place : start] if first < rounds else ()), *rest]
    last = log[start - 1] if rounds else {}
    found = {name: tables.columns(name, recent) for name in COLUMNS if name != "decisions"}
    found["decisions"] = _decisions(recent)
    found["rounds"] |= _parts(found["rounds"], tables.columns("cache", recent))
    found["rounds"] |= _reads(found["rounds"], tables.columns("reads", recent))
    found["tokens"]["kind"] = list(_kinds(found["tokens"], found["rounds"]))
    moved = changes(recent, log[index[first - 1].place] if first else None)
    open_phase = upto[1] if upto and upto[1] < CACHE and last.get("round") == upto[0] else None
    if open_phase is not None:
        found, moved = _masked(found, moved, *upto)
    count = len(found["tokens"].get("round", ()))
    found = {name: _tidy(name, columns) for name, columns in found.items()}
    ends = [event.get("reason") for event in rest if event["type"] == "end"]
    shown = open_phase is None or open_phase >= COMMIT
    length = last.get("index", 0) + (last.get("emitted", 0) if shown else 0)
    data = {
        "version": 2,
        "id": trace.id,
        "since": since,
        "first": length - count,
        "length": length,
        "rounds_recorded": last.get("round", -1) + 1,
        "ended": ends[-1] if ends and open_phase is None else None,
        "phase": open_phase,
        "slots": moved,
        **found,
    }
    if not since:
        data |= _facts(trace)
    dists = [found["tokens"], *(part for part in (data.get("prompt"),) if isinstance(part, dict))]
    known = (dist for part in dists for name in ("topk_raw", "topk_sampled") for dist in part.get(name, ()) if dist)
    text_of = text_of or reader(trace)
    data["names"] = {str(token): text_of(token) for token in sorted({int(token) for ids, _ in known for token in ids})}
    return data


def _facts(trace: Trace) -> dict[str, Any]:
    """What does not change while a run goes on."""
    run, names = trace.run, ("of", "label", "unit", "hue", "low", "high")
    target = tables.model(run, "target")
    heads = target.get("kv_heads")
    return {
        "prompt": _prompt(trace),
        "prompt_tokens": len(run.get("prompt_ids") or ()),
        "guarantee": run.get("guarantee"),
        "decoder": str((run.get("decoder") or {}).get("name") or "unnamed"),
        "max_new_tokens": run.get("max_new_tokens"),
        "layers": target.get("layers"),
        "heads": max(heads, default=None) if isinstance(heads, (list, tuple)) else heads,
        "marks": _marks(run),
        "signals": {name: dict(zip(names, entry, strict=True)) for name, entry in SIGNALS.items()},
    }


def _marks(run: Event) -> list[dict[str, Any]]:
    """Where a run branched off, with what, and where the reader forced a token."""
    forced, start = sorted(map(int, run.get("forced") or {})), (run.get("parent") or {}).get("index")
    marks = [{"index": index, "text": "forced token"} for index in forced if index >= (start or 0)]
    if start is not None and start not in forced:
        stack = ((run.get("cache") or {}).get("settings") or {}).values()
        cache = " + ".join(str(part["name"]) for part in stack if isinstance(part, dict) and "name" in part)
        name = str((run.get("decoder") or {}).get("name") or "unnamed").replace("_", " ")
        marks.insert(0, {"index": start, "text": f"from here: {name}, cache {cache or 'full'}"})
    return marks


def _decisions(recent: list[Event]) -> Columns:
    """What controllers did, a row each; the signals they read as text."""
    columns = tables.columns("events", recent)
    chosen = [place for place, kind in enumerate(columns.get("type", ())) if kind == "decision"]
    found = {name: [columns[name][place] for place in chosen] for name in COLUMNS["decisions"] if name in columns}
    for name in ("threshold", "signals", "action", "controller"):
        found[name] = [None if value is None else _said(value) for value in found.get(name, ())]
    return {name: values for name, values in found.items() if values}


def _said(value: Any) -> str:
    """A signal or threshold in words: `entropy 3.41 nats`."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value))
    if isinstance(value, dict):
        parts = (value.get(name) for name in ("name", "value", "unit"))
        return " ".join(_said(part) for part in parts if part not in (None, ""))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _parts(rounds: Columns, cache: Columns) -> Columns:
    """The bytes of every round's cache by `PARTS`: the target's without free slots, those, other models', all kept."""
    sums: dict[int, list[float | None]] = {}
    names = ("round", "model", "bytes", "pad", "staging", "full")
    if not all(name in cache for name in names):
        return {}
    for round, role, size, pad, staging, full in zip(*(cache[name] for name in names), strict=True):
        part = sums.setdefault(round, [0, 0, 0, 0])
        free = (pad or 0) + (staging or 0)
        added = [size - free, free, 0, full] if role == "target" else [0, 0, size, 0]
        sums[round] = [None if None in pair else sum(pair) for pair in zip(part, added, strict=True)]
    rows = [sums.get(round, [None] * len(PARTS)) for round in rounds.get("round", ())]
    return {name: [row[k] for row in rows] for k, name in enumerate(PARTS)}


def _reads(rounds: Columns, reads: Columns) -> Columns:
    """What the target's attention read in every round, by `READS`; null where nothing is known."""
    sums: dict[str, dict[int, float]] = {name: {} for name in READS}
    models = reads.get("model") or [None] * len(reads.get("round", ()))
    for name, column in READS.items():
        for round, model, value in zip(reads.get("round", ()), models, reads.get(column, ()), strict=False):
            if model in ("target", None) and value is not None:
                sums[name][round] = sums[name].get(round, 0) + value
    return {name: [of.get(round) for round in rounds.get("round", ())] for name, of in sums.items()}


def _masked(found: dict[str, Columns], moved: Columns, round: int, phase: int) -> tuple[dict[str, Columns], Columns]:
    """Without what later phases of that round decide."""
    masked = {}
    for table, columns in found.items():
        numbers = columns.get("round", [])
        if table in KNOWN:
            late = CACHE if table == "rounds" else DRAFT
            known, own = KNOWN[table], [at == round for at in numbers]
            masked[table] = {
                name: [None if out else value for out, value in zip(own, values, strict=True)]
                if known.get(name, late) > phase else values
                for name, values in columns.items()
            }  # fmt: skip
            continue
        since = [COMMIT if table == "tokens" else CACHE] * len(numbers)
        if table == "forwards":
            since = [PASSED.get(kind, VERIFY) for kind in columns.get("phase", ())]
        gone = [at == round and phase < first for at, first in zip(numbers, since, strict=True)]
        masked[table] = _kept(columns, gone)
    return masked, _kept(moved, [at == round for at in moved.get("round", [])])


def _kept(columns: Columns, gone: list[bool]) -> Columns:
    """The rows that are not gone."""
    return {n: [value for value, out in zip(values, gone, strict=True) if not out] for n, values in columns.items()}


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
        look = f"background:rgba(125,95,224,{0.5 * share:.2f})"
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
    tidy, numbers = {}, NUMBERS.get(table, {"round"})
    extra = {"tokens": ("kind", *_unknown(columns)), "rounds": (*PARTS, *READS)}.get(table, ())
    for name in wanted or (*COLUMNS[table], *extra):
        values = columns.get(name, ())
        try:
            values = [_number(value) for value in values] if name in numbers else values
        except (TypeError, ValueError):
            raise BadTrace(f"damaged trace: {table}.{name} holds values that are not numbers") from None
        if any(value is not None for value in values):
            tidy[name] = values
    return tidy


def _unknown(columns: Columns) -> Iterator[str]:
    """Columns of tokens that the schema does not know and that hold finite numbers, and nothing else."""
    for name in sorted(columns.keys() - SCHEMA - {"kind"}):
        values = [value for value in columns[name] if value is not None]
        if values and all(type(value) in (int, float) and math.isfinite(value) for value in values):
            yield name


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
