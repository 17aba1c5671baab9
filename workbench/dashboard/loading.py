"""Models that a page waits for: how far their loading is, and a way to stop it."""

from collections.abc import Iterator

import gradio as gr

from workbench.dashboard.form import Wanted
from workbench.dashboard.html import block, inert, line
from workbench.dashboard.jobs import Job
from workbench.dashboard.visits import Visit, guarded
from workbench.errors import BadInput, Cancelled

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


def panel() -> None:
    """The line that says how far it is; the page shows it on the button that runs."""
    block("loading", live=True)


@guarded
def _begun(visit: Visit, filled: str) -> Loading | None:
    """The loading of the form's models, under way; None where the form asks for none that can be."""
    try:
        wanted = visit.form.read(filled)
    except BadInput:  # what comes next says so
        return None
    if "loading" in visit.jobs and not visit.jobs["loading"].over:
        raise BadInput("a model is being loaded already; cancel that first")
    loading = visit.jobs["loading"] = Loading(wanted)
    loading.start()
    return loading


def wait(visit: Visit | None, filled: str = "") -> Iterator[str]:
    """Say how far the loading of the form's models is, until they are there. At once where nothing has to be loaded."""
    loading, pause = _begun(visit, filled), QUICK_S
    while loading is not None:
        loading.join(pause)
        if loading.over:
            break
        visit.hear()
        yield _shown(loading.line)
        pause = BEAT_S
    yield _shown("")
    if loading is not None and loading.error:
        visit.message = loading.error
        raise gr.Error(inert(loading.error), print_exception=False, visible=False)


def stop(visit: Visit | None) -> None:
    """Stop what the page waits for."""
    if visit is not None and "loading" in visit.jobs:
        visit.jobs["loading"].stop()


def _shown(text: str) -> str:
    return line(text) if text else ""
