"""Models that a page waits for: how far their loading is, and a way to stop it."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from workbench.dashboard.form import Form, Wanted
from workbench.dashboard.html import block, button, inert, line
from workbench.dashboard.jobs import Job
from workbench.dashboard.visits import LOADING, Visit
from workbench.errors import BadInput, Cancelled

__all__ = ["Loading", "outputs", "panel", "stop", "wait"]

QUICK_S, BEAT_S = 0.3, 0.4  # what needs no word; between two looks


class Loading(Job):
    """The models that a run needs, on their way into memory. line: how far."""

    def __init__(self, wanted: Wanted):
        super().__init__(f"loading {wanted.model}", who=None)
        self.wanted, self.line = wanted, f"loading {wanted.model} …"

    def work(self) -> None:
        self.wanted.load_all(self._tell)

    def _tell(self, name: str, step: str, done: int, total: int) -> None:
        if self._halt.is_set():
            raise Cancelled(f"the loading of {name} was stopped")
        unit, size = ("GB", 1e9) if total >= 1e9 else ("MB", 1e6)
        digits = 1 if total < 10 * size else 0
        self.line = f"{step} {name}, {done / size:.{digits}f} of {total / size:.{digits}f} {unit}"


def panel(parts: dict[str, Any]) -> None:
    """The line that says how far it is, and the button that stops it; both hidden while nothing is loaded."""
    parts["loading"] = block("loading", live=True, visible=False)
    button(parts, "cancel", "Cancel", 90, visible=False)


def outputs(parts: dict[str, Any]) -> list[Any]:
    """The components that `wait` updates."""
    return [parts["loading"], parts["cancel"]]


def wait(visit: Visit | None, form: Form, *values: Any) -> Iterator[tuple]:
    """Say how far the loading of the form's models is, until they are there. At once where nothing has to be loaded."""
    if visit is None:
        raise gr.Error(LOADING, print_exception=False)
    try:
        wanted = form.read(values)
    except BadInput:  # what comes next says so
        yield _shown("")
        return
    with visit.lock:
        if "loading" in visit.jobs and not visit.jobs["loading"].over:
            raise gr.Error("a model is being loaded already; cancel that first", print_exception=False)
        loading = visit.jobs["loading"] = Loading(wanted)
        loading.start()
    loading.join(QUICK_S)
    while not loading.over:
        visit.hear()
        yield _shown(loading.line)
        loading.join(BEAT_S)
    yield _shown("")
    if loading.error:
        visit.message = loading.error
        raise gr.Error(inert(loading.error), print_exception=False)


def stop(visit: Visit | None) -> None:
    """Stop what the page waits for."""
    if visit is not None and "loading" in visit.jobs:
        visit.jobs["loading"].stop()


def _shown(text: str) -> tuple:
    return gr.update(value=line(text) if text else "", visible=bool(text)), gr.update(visible=bool(text))
