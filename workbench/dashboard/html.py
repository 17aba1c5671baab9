"""HTML in which all text is inert: tables, a run's figures as tiles, what might stand in a token's place, and a round
phase by phase."""

import html
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gradio as gr
import pandas as pd

from workbench.report.headline import headline, size
from workbench.trace import Trace
from workbench.views.figure import visible
from workbench.views.palette import colour

__all__ = ["PHASES", "block", "button", "candidates", "figures", "inert", "line", "number", "phases", "shown", "table"]

PHASES = ("draft", "verify", "accept", "commit", "cache")  # views of one recorded round, in the order of its work
NOTHING = '<p class="wb-empty">No round yet. A step decodes one.</p>'
TIMED = {"verify": "target", "accept": "verify"}  # phases whose times the trace has under another name
SHOWN = 24  # nodes or tokens listed in a phase
LIVE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
Reader = Callable[[int], str]


def block(elem_id: str, value: str = "", live: bool = False, **more: Any) -> gr.HTML:
    """A place for HTML on the page; `live` has its changes read out."""
    script = LIVE if live else None
    return gr.HTML(value, elem_id=elem_id, padding=False, apply_default_css=False, js_on_load=script, **more)


def button(name: str, label: str, width: int | None = 80, **more: Any) -> None:
    """A small button."""
    gr.Button(label, elem_id=name, min_width=width, **{"size": "sm", **more})


def line(text: str, bar: str = "") -> str:
    """A line that says how far something is; `bar` is HTML before it."""
    return f'<p class="wb-progress">{bar}{inert(text)}</p>'


def inert(text: Any) -> str:
    """Text in which nothing is markup, for the browser or for a template."""
    safe = html.escape(str(text))
    return safe.replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;").replace("`", "&#96;")


def shown(text: str) -> str:
    """A token as one inert word, white space visible."""
    return inert(visible(text)) or "◦"


def number(value: Any, digits: int = 3) -> str:
    """A value in a cell; "–" where there is none."""
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.{digits}g}"
    return inert(value)


def table(head: Iterable[str], rows: Iterable[Sequence[str]], caption: str = "", name: str = "wb-rows") -> str:
    """A table of inert cells under inert headings."""
    top = "".join(f'<th scope="col">{inert(one)}</th>' for one in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    about = f"<caption>{inert(caption)}</caption>" if caption else ""
    return f'<div class="wb-scroll" tabindex="0"><table class="{name}">{about}<tr>{top}</tr>{body}</table></div>'


def figures(trace: Trace) -> str:
    """The run's main figures as a row of tiles."""
    facts = {name: text for name, text in headline(trace).items() if name != "end"}  # the status line says how it ended
    tiles = (f"<div><dt>{inert(name)}</dt><dd>{inert(text)}</dd></div>" for name, text in facts.items())
    return f'<dl class="wb-figures">{"".join(tiles)}</dl>'


def candidates(trace: Trace, index: int, text_of: Reader) -> list[tuple[str, int]]:
    """(label, id) of the most likely tokens at a place, best first: p under the raw distribution and under the one
    sampled from, what was taken, and what was cut."""
    row = trace.tokens.iloc[index]
    ids, dist = row["topk_raw"] or [[], []]
    kept = dict(zip(*row["topk_sampled"], strict=True)) if row["topk_sampled"] else None
    found = []
    for place, (token, p) in enumerate(zip(ids, dist, strict=True)):
        sampled = f" → {kept[token]:.3g}" if kept and token in kept else ""
        cut = f", cut by {row['cut_by']}" if kept is not None and token not in kept and row["cut_by"] else ""
        mark = ", taken" if token == row["token_id"] else ""
        found.append((f"{place + 1}. {text_of(int(token))!r}  p {p:.3g}{sampled}{mark}{cut}", int(token)))
    return found


def phases(trace: Trace | None, round: int | None, phase: int | None) -> str:
    """The phases of a round as a list; those after `phase` are still closed (None: all are open)."""
    if round is None:
        return NOTHING
    log = list(trace.log)  # this round and the one before it, as a trace that does not grow while it is read
    trace = Trace([log[0], *(event for event in log if event.get("round") in (round - 1, round))])
    tables = {name: getattr(trace, name) for name in ("rounds", "drafts", "forwards", "tokens", "events")}
    of_round = {name: frame[frame["round"] == round] for name, frame in tables.items()}
    row = of_round.pop("rounds").iloc[0]
    now = len(PHASES) - 1 if phase is None else phase
    items = []
    for place, name in enumerate(PHASES):
        took = row[f"{TIMED.get(name, name)}_ms"]
        time = f" <small>{number(took)} ms</small>" if not pd.isna(took) else ""
        here = phase is not None and place == now
        state = ' class="wb-now" aria-current="step"' if here else "" if place <= now else ' class="wb-later"'
        body = _BODIES[name](trace, row, **of_round) if place <= now else "<p>not shown yet</p>"
        items.append(f"<li{state}><h4>{place + 1}. {name}{time}</h4>{body}</li>")
    mode = f", {inert(row['mode'])}" if row["mode"] else ""
    head = f'<p class="wb-round">Round {round}{mode}: {number(row["emitted"])} tokens</p>'
    return f'{head}<ol class="wb-phases">{"".join(items)}</ol>'


def _code(text: str | None) -> str:
    return f"<code>{shown(text or '')}</code>"


def _draft(trace: Trace, row: Any, drafts: pd.DataFrame, **_: Any) -> str:
    if drafts.empty:
        many = f" The trace does not list its {number(row['drafted'])} drafts."
        return f"<p>{many if row['drafted'] else 'Nothing was drafted.'}</p>"
    nodes = drafts.head(SHOWN).itertuples()
    rows = [(number(node.node), number(node.parent), _code(node.text), number(node.q)) for node in nodes]
    drafter = inert(drafts["drafter"].iloc[0] or "unknown")
    said = f"<p>{drafter} proposed {len(drafts)}, {number(row['depth'])} deep.</p>"
    return said + table(("node", "after", "token", "q"), rows)


def _verify(trace: Trace, row: Any, forwards: pd.DataFrame, drafts: pd.DataFrame, **_: Any) -> str:
    rows = [
        (inert(f"{model or phase}"), str(len(part)), number(part["rows"].sum()), number(part["wall_ms"].sum()))
        for (phase, model), part in forwards.groupby(["phase", "model"], sort=False, dropna=False)
    ]
    read = forwards["kv_read_bytes"].sum()
    said = f"<p>The forwards read {size(read)} of keys and values.</p>" if read else ""
    return table(("model", "forwards", "rows", "ms"), rows) + said if rows else "<p>No forward is on record.</p>"


def _accept(trace: Trace, row: Any, drafts: pd.DataFrame, **_: Any) -> str:
    if drafts.empty:
        return "<p>No draft to accept: the token comes from the target's own distribution.</p>"
    rows = []
    for node in drafts.head(SHOWN).itertuples():
        fate = node.fate or "–"
        dot = f'<span class="wb-dot" style="background:{colour("fate", fate)}"></span>'
        why = f"{fate.replace('_', ' ')}{f': {node.reason}' if node.reason else ''}"
        rows.append((number(node.node), _code(node.text), number(node.p), dot + inert(why)))
    said = f"<p>{number(row['accepted'])} of {number(row['drafted'])} accepted.</p>"
    return said + table(("node", "token", "p", "fate"), rows)


def _commit(trace: Trace, row: Any, tokens: pd.DataFrame, **_: Any) -> str:
    if tokens.empty:
        return "<p>No token.</p>"
    sources = Counter(source or "unknown" for source in tokens["source"])
    who = ", ".join(f"{count} from {inert(name)}" for name, count in sources.items())
    words = " ".join(map(_code, tokens["text"].head(SHOWN)))
    return f"<p>{words}</p><p>{who}; {number(row['context'])} tokens of context.</p>"


def _cache(trace: Trace, row: Any, events: pd.DataFrame, **_: Any) -> str:
    earlier = trace.rounds[trace.rounds["round"] < row["round"]]["cache_bytes"].dropna()
    before, after = (earlier.iloc[-1] if len(earlier) else 0), row["cache_bytes"]
    said = "" if pd.isna(after) else f"<p>{size(before)} → <b>{size(after)}</b> on the device.</p>"
    said += f"<p>{number(row['bits_per_element'])} bits per element.</p>"
    acts = Counter(op for op in events[events["type"] == "cache"]["op"] if op)
    did = ", ".join(f"{inert(name)} × {count}" for name, count in acts.items())
    return said + (f"<p>Events: {did}.</p>" if did else "<p>No maintenance was due.</p>")


_BODIES = {"draft": _draft, "verify": _verify, "accept": _accept, "commit": _commit, "cache": _cache}
