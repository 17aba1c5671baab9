"""Several runs: branch off with another token or other settings, choose a run, forget one, two side by side."""


import gradio as gr

from workbench import views, web
from workbench.dashboard import screen as page
from workbench.dashboard.form import told_beside
from workbench.dashboard.jobs import Worker
from workbench.dashboard.transport import set_to_work
from workbench.dashboard.visits import Visit, guarded, told
from workbench.errors import BadInput
from workbench.report.headline import headline
from workbench.session import Session
from workbench.values import whole


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
    text = visit.branch.reader(token) if isinstance(token, int) else token
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
    """Two choices of a run, and both over one timeline; the value of `both` is what `side_by_side` returns."""
    with gr.Row(elem_id="pair"):
        for side, label in (("left", "A"), ("right", "B")):
            gr.Dropdown([], label=f"run {label}", container=False, min_width=140, elem_id=side)
    page.from_module("both", "beside", {"css": web.css()})


@guarded
def side_by_side(visit: Visit, left: int | None, right: int | None) -> str:
    """Both runs, the first token that differs and why, what was set differently, and their figures, as JSON."""
    known = range(len(visit.branches))
    if left not in known or right not in known:
        return ""
    a, b = visit.branches[left], visit.branches[right]
    if a.open or b.open:
        raise BadInput("a round is shown in part; step it to its end before the runs are seen side by side")
    names = [page.name_of(visit, side) for side in (left, right)]
    diff, _ = views.branch_diff(a.trace, b.trace, names=(names[0][0], names[1][0]))
    said = "The texts are the same." if diff.index is None else f"They part at token {diff.index}: {diff.cause}."
    runs = [web.payload(one.trace, 0, one.reader) for one in (a, b)]
    if diff.index is not None:
        runs[0]["marks"].append({"index": diff.index, "text": "they part"})
    changed = [[name, *map(str, values)] for name, values in diff.settings.items()]
    main, other = headline(a.trace), headline(b.trace)
    facts = [[name, main[name], other[name]] for name in main if name != "tokens / s"]  # one may have been stepped
    tables = [{"title": "Set differently", "rows": changed}] * bool(changed) + [{"title": "Both runs", "rows": facts}]
    shown = {"runs": runs, "names": names, "said": said, "detail": diff.detail, "part": diff.index, "tables": tables}
    return web.to_json(shown)
