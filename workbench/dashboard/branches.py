"""Sideways: branch off with another token or other settings, choose a run, forget one."""

from typing import Any

import gradio as gr

from workbench.dashboard import panel as page
from workbench.dashboard.form import Form
from workbench.dashboard.guard import guarded
from workbench.dashboard.run import Branch, Replay, Worker
from workbench.dashboard.visit import Visit
from workbench.errors import BadInput
from workbench.session import Session

__all__ = ["choose", "forget", "fork", "panel", "resettle"]


def panel(parts: dict[str, Any]) -> None:
    """The list of runs, and the controls of a branch."""
    with gr.Row(elem_id="runs"):
        parts["branches"] = gr.Dropdown([], label="runs and branches", scale=4, min_width=200, elem_id="branches")
        small = {"size": "sm", "interactive": False, "scale": 1, "min_width": 80}
        parts["forget"] = gr.Button("Forget", elem_id="forget", **small)
    with gr.Accordion("Branch before the token at the cursor", open=True, elem_id="forking"):
        parts["candidates"] = gr.Radio(
            [],
            label="take a candidate (p of the raw distribution → of the distribution sampled from)",
            elem_id="candidate",
        )
        with gr.Row():
            parts["typed"] = gr.Textbox(
                "", label="or type one token", max_lines=1, scale=2, min_width=130, elem_id="typed"
            )
            parts["fork"] = gr.Button("Branch here", elem_id="fork", **small)
        wide = {"size": "sm", "interactive": False, "elem_id": "resettle"}
        parts["resettle"] = gr.Button("Go on after it with the settings as they are now", **wide)


def _live(visit: Visit) -> Session:
    run = visit.branch.run
    if isinstance(run, Replay):
        raise BadInput("an opened trace has no model behind it; press Start to run and branch")
    return run


@guarded
def fork(visit: Visit, candidate: int | None, typed: str) -> tuple:
    """Branch off before the token at the cursor, with another token there."""
    run, before = _live(visit), visit.playing
    worker = visit.halt()
    at, token = visit.focus, typed or candidate
    if at is None:
        raise BadInput("choose a token first: click one in the text")
    if token is None:
        raise BadInput("choose a candidate or type one token: a branch needs something new")
    made = run.fork(at=at, token=token)
    text = visit.text_of(token) if isinstance(token, int) else token
    _add(visit, made, f"before token {at}: {text!r}")
    visit.branch.advance("round")
    page.say(visit, f"Branched off before token {at}.")
    return _on(visit, worker if before else None)


@guarded
def resettle(visit: Visit, form: Form, *values: Any) -> tuple:
    """Branch off behind the token at the cursor, with the settings of the form; a run that was going goes on."""
    run, before = _live(visit), visit.playing
    wanted = form.read(values)
    if not wanted.is_of(run.lm):
        raise BadInput(f"this run is one of {run.lm.name}; for another model, device or dtype press Start")
    worker = visit.halt()
    at = run.cursor if visit.selected is None else visit.focus + 1
    made = run.fork(at=at, decoder=wanted.decoder, **wanted.settings)
    stack = wanted.settings["cache"]
    names = [wanted.decoder.declared_name, *(m.declared_name for m in (stack.policy, stack.quantizer) if m)] if stack \
        else [wanted.decoder.declared_name]  # fmt: skip
    _add(visit, made, f"from token {at}: {', '.join(names)}")
    visit.branch.advance("round")
    page.say(visit, f"Goes on from token {at} with the new settings.")
    return _on(visit, worker if before else None)


def _add(visit: Visit, made: Session, what: str) -> None:
    parent = visit.branch.label.split(":")[0]
    visit.add(Branch(f"{visit.runs + 1}: branch of {parent} {what}", made))
    visit.runs += 1


def _on(visit: Visit, worker: Worker | None) -> tuple:
    """The page; where a worker was at it, another one goes on in the branch."""
    if worker is not None and not visit.branch.done:
        again = Worker(visit.branch, worker.by, worker.pace, worker.holds, visit.client)
        visit.worker = again
        shown = page.panel(visit)
        again.start()
        return shown
    return page.panel(visit)


@guarded
def choose(visit: Visit, number: int | None) -> tuple:
    """Look at another run."""
    if isinstance(number, int) and 0 <= number < len(visit.branches) and number != visit.current:
        visit.halt()
        visit.look(number)
        page.say(visit, f"Looking at {visit.branch.label}.")
    return page.panel(visit)


@guarded
def forget(visit: Visit) -> tuple:
    """Let go of the run looked at."""
    visit.halt()
    gone = visit.branches.pop(visit.current) if visit.branches else None
    visit.look(max(0, len(visit.branches) - 1))
    visit.message = f"Forgot {gone.label}." if gone else visit.message
    return page.panel(visit)
