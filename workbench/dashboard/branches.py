"""Several runs: branch off with another token or other settings, choose a run, forget one, two side by side."""

from typing import Any

import gradio as gr

from workbench import views
from workbench.dashboard import screen as page
from workbench.dashboard.figures import words
from workbench.dashboard.form import told_beside
from workbench.dashboard.html import block, button, inert, shown, table
from workbench.dashboard.jobs import Worker
from workbench.dashboard.transport import set_to_work
from workbench.dashboard.visits import Visit, guarded, told
from workbench.errors import BadInput
from workbench.report.headline import headline
from workbench.session import Session
from workbench.values import whole

__all__ = ["choose", "forget", "fork", "resettle", "side_by_side", "sides"]

BEFORE, AFTER = 400, 200  # tokens shown before and after the place where two runs part


@guarded
def fork(visit: Visit, event: gr.EventData) -> tuple:
    """Branch off before the token at the cursor, with another token there."""
    run, asked = _live(visit), told(event)
    at, token = whole(asked.get("index")), asked.get("text") or whole(asked.get("token"))
    if at is None or not 0 <= at < run.length:
        raise BadInput("choose a token first: click one in the text")
    if token is None:
        raise BadInput("choose a candidate or type one token: a branch needs something new")
    worker = visit.halt()
    made = run.fork(at=at, token=token)
    text = visit.reader(token) if isinstance(token, int) else token
    return _look(visit, made, f"from {at}", f"Branched off before token {at}, with {text!r} there.", worker)


@guarded
def resettle(visit: Visit, filled: str) -> tuple:
    """Branch off behind the token at the cursor, with the settings of the form; a run that was going goes on."""
    run = _live(visit)
    wanted = visit.form.read(filled)
    if not wanted.is_of(run.lm):
        raise BadInput(f"this run is one of {run.lm.name}; for another model, device or dtype press Run")
    worker = visit.halt()
    index = whole(told_beside(filled).get("index"))
    at = None if index is None or not 0 <= index < run.length else index + 1
    made = run.fork(at=at, decoder=wanted.decoder, **wanted.settings)
    at = made.trace.run["parent"]["index"]
    names = ", ".join([wanted.decoder.declared_name, *wanted.cached])
    return _look(visit, made, f"from {at}", f"Goes on from token {at}: {names}.", worker)


def _live(visit: Visit) -> Session:
    run = visit.branch.run
    if not isinstance(run, Session):
        raise BadInput("an opened trace has no model behind it; press Run to decode and branch")
    return run


def _look(visit: Visit, made: Session, what: str, said: str, worker: Worker | None) -> tuple:
    """The page on a new branch, one round on; where a worker was at the run before, another one goes on here."""
    visit.add(what, made)
    visit.branch.advance("round")
    page.say(visit, said)
    if worker is None or visit.branch.done:
        return page.panel(visit)
    return set_to_work(visit, Worker(visit.branch, worker.by, worker.pace, worker.holds, visit.client))


@guarded
def choose(visit: Visit, event: gr.EventData) -> tuple:
    """Look at another run."""
    number = whole(told(event).get("run"))
    if number is not None and 0 <= number < len(visit.branches) and number != visit.current:
        visit.halt()
        visit.current, visit.selected = number, None
        page.say(visit)
    return page.panel(visit)


@guarded
def forget(visit: Visit) -> tuple:
    """Let go of the run looked at."""
    visit.halt()
    gone = visit.branches.pop(visit.current) if visit.branches else None
    visit.current, visit.selected = max(0, len(visit.branches) - 1), None
    visit.message = f"Forgot {gone.label}." if gone else visit.message
    return page.panel(visit)


def sides() -> None:
    """Two choices of a run, both texts, the figure, its words and its table."""
    with gr.Row():
        for side, label in (("left", "a"), ("right", "b")):
            gr.Dropdown([], label=f"run {label}", scale=2, min_width=200, elem_id=side)
        button("beside", "Show side by side", 120, variant="primary")
    block("both", '<p class="wb-empty">Choose two runs or branches.</p>')
    gr.Plot(show_label=False, visible=False, elem_id="diff")
    block("diff-words")


@guarded
def side_by_side(visit: Visit, left: int | None, right: int | None) -> tuple:
    """Both texts with the first difference marked, and the figure."""
    known = range(len(visit.branches))
    if left not in known or right not in known:
        raise BadInput("choose two runs or branches to see side by side; a step or an opened trace makes one")
    a, b = visit.branches[left], visit.branches[right]
    diff, drawn = views.branch_diff(a.trace, b.trace, theme=visit.theme)
    parts = "The texts are the same." if diff.index is None else f"They part at token {diff.index}: {diff.cause}."
    named = (("a", page.name_of(visit, left)), ("b", page.name_of(visit, right)))
    columns = "".join(_side(side, name, diff) for side, name in named)
    said = f'<p class="wb-verdict"><b>{inert(parts)}</b> {inert(diff.detail)}</p>'
    main, other = headline(a.trace), headline(b.trace)
    facts = _table("figure", [(name, main[name], other[name]) for name in main], "both runs")
    changed = [(name, *values) for name, values in diff.settings.items()]
    settings = _table("setting", changed, "what was set differently") if changed else ""
    html = f'{said}<div class="wb-sides">{columns}</div>{facts}{settings}'
    return html, gr.update(value=drawn, visible=True), words(drawn)


def _table(what: str, rows: list[tuple], caption: str) -> str:
    return table((what, "a", "b"), [map(inert, row) for row in rows], caption)


def _side(side: str, name: str, diff: Any) -> str:
    tokens = diff.tokens
    texts = [text for text in tokens[f"text_{side}"] if isinstance(text, str)]
    at = len(texts) if diff.index is None else min(diff.index, len(texts))
    start = max(0, at - BEFORE)
    before, after = "".join(texts[start:at]), "".join(texts[at + 1 : at + AFTER])
    first = f'<mark aria-label="first difference">▸{shown(texts[at])}</mark>' if at < len(texts) else ""
    if diff.index is not None and at >= len(texts):
        first = "<mark>▸ended here</mark>"
    lead = "…" if start else ""
    return (
        f'<section aria-label="run {side}"><h4>{side}: {inert(name)}</h4>'
        f'<pre><span class="wb-same">{lead}{inert(before)}</span>{first}{inert(after)}</pre></section>'
    )
