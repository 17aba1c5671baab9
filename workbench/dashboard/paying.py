"""Does drafting pay in the run looked at? Its costs against a plain run's, and what other draft shapes would give."""

from dataclasses import replace
from statistics import median

import gradio as gr

from workbench.dashboard.charts import Mark, bars, intervals
from workbench.dashboard.comparing import PLAIN, many
from workbench.dashboard.html import inert, line
from workbench.dashboard.jobs import Job
from workbench.dashboard.visits import Visit, guarded
from workbench.errors import BadInput
from workbench.experiments.headroom import Costs, headroom
from workbench.session import Session
from workbench.trace import Trace
from workbench.views.break_even import BreakEven, break_even_numbers

MEASURED = 64  # tokens of a plain run at most
PART = '<h3 class="wb-part">Does drafting pay?</h3>'
NONE = "No run yet. Press Run; then this says whether drafting pays."
UNKNOWN = "Every forward of this run scored a draft, so what a plain step takes is not known: measure a plain run."
OPENED = "An opened trace has no model behind it: press Run to measure a plain run."


class Plain(Job):
    """A plain run of a session's prompt under its settings, whose speed is noted in the session's trace.

    session: what is compared with it. trace: of the plain run; None before it is at its end.
    """

    def __init__(self, session: Session, who: str = ""):
        super().__init__("plain run", who)
        self.session, self.trace = session, None
        most = min(MEASURED, session.settings.max_new_tokens)
        self.plain = session.fork(at=0, decoder=PLAIN, max_new_tokens=most)

    def work(self) -> None:
        while self.plain.step() is not None:
            if self._halt.is_set() or self.turn.over:
                return
        self.trace = self.plain.trace
        self.session.trace.run["baseline"] = {"tokens_per_second": self.trace.summary()["tokens_per_second"]}


@guarded
def baseline(visit: Visit) -> tuple:
    """Measure a plain run of the prompt and settings of the run looked at; while one is measured, stop it."""
    job = visit.jobs.get("baseline")
    if job is not None and not job.over:
        job.stop()
        job.join()
        return paying(visit)
    run = visit.branch.run
    if not isinstance(run, Session):
        raise BadInput(OPENED)
    if visit.worker is not None and visit.worker.is_alive():
        raise BadInput("the run is being decoded; measure a plain run when it has ended or is paused")
    job = Plain(run, visit.client)
    job.start()
    visit.jobs["baseline"] = job
    return paying(visit)


@guarded
def paying(visit: Visit) -> tuple:
    """How far the plain run is; break-even and headroom; the button; and the timer, at work while the run is."""
    job = visit.jobs.get("baseline")
    busy = job is not None and not job.over
    if not visit.branches:
        idle = gr.update(value="Measure a plain run", interactive=False)
        return "", PART + line(NONE), idle, gr.Timer(active=False)
    run, trace = visit.branch.run, visit.branch.trace
    mine = job is not None and job.session is run
    found = break_even_numbers(trace, job.trace if mine else None)
    said = f"{many(job.plain.length, 'token')} of the plain run decoded …" if busy else job.error if mine else ""
    label = "Stop" if busy else f"Measure a plain run{_about(trace)}"
    pressed = gr.update(value=label, interactive=busy or (isinstance(run, Session) and found.drafted is not None))
    parts = f'<div class="wb-two">{_break_even(found)}{_headroom(trace, found)}</div>'
    made = f'{PART}<div class="wb-report">{parts}</div>'
    return line(said) if said else "", made, pressed, gr.Timer(active=busy)


def _about(trace: Trace) -> str:
    """How long a plain run would take, by the target's forwards so far."""
    passes = trace.forwards
    times = passes["wall_ms"][passes["phase"] == "target"].dropna()
    tokens = min(MEASURED, trace.run.get("max_new_tokens") or MEASURED)
    return f", about {max(1, round(tokens * median(times) / 1000))} s" if len(times) else ""


def _break_even(found: BreakEven) -> str:
    """What a round emits and what it costs, as bars."""
    if found.predicted is None:
        why = found.why if found.drafted is None else UNKNOWN
        return f"<section><h3>Break-even</h3><p>{inert(why)}</p></section>"
    gain = (f"{found.measured:.2f}× measured, " if found.measured else "") + f"{found.predicted:.2f}× predicted"
    drafting = found.drafted * found.draft_cost
    rows = [
        ("a round emits", [found.emitted], f"{found.emitted:.2f} tokens, each worth a plain step"),
        ("and costs", [drafting, found.score_cost],
         f"{found.cost:.2f} plain steps: {drafting:.2f} to draft, {found.score_cost:.2f} to score"),
    ]  # fmt: skip
    step = f"A plain step takes {found.plain_ms:.3g} ms{', extrapolated' if found.extrapolated else ''}."
    about = f"<p>{inert(found.why)} {inert(step)}</p>"
    return f"<section><h3>Break-even: {inert(gain)}</h3>{about}{bars(rows)}</section>"


def _headroom(trace: Trace, found: BreakEven) -> str:
    """The best shape of each kind against the oracle; where a run cannot tell, why."""
    try:
        if not (trace.forwards["phase"] == "target").any():
            raise BadInput("no forward of the target is recorded")
        costs = Costs.of(trace)
        shapes = headroom(trace, replace(costs, plain=found.plain_ms) if found.plain_ms else costs)
    except BadInput as why:
        return f"<section><h3>Headroom</h3><p>Not known: {inert(str(why).removeprefix('headroom: '))}.</p></section>"
    best = shapes.loc[shapes.groupby("shape", sort=False)["modelled_speedup"].idxmax()]
    marks = [
        Mark(f"{one.shape} {one.setting}", one.modelled_speedup, note=f"{one.modelled_speedup:.2f}×",
             strong=one.shape == "oracle")
        for one in best.itertuples()
    ]  # fmt: skip
    about = inert(shapes.attrs["note"])
    drawn = intervals(marks, "modelled speed-up of the best shape of each kind, the oracle last")
    return f"<section><h3>Headroom of other drafts</h3><p>{about}</p>{drawn}</section>"
