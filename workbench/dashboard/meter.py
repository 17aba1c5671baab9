"""The losslessness meter: one click, and what the settings' decoder guarantees stands beside what it does."""

import threading
from typing import Any

import gradio as gr

from workbench.dashboard.form import Form
from workbench.dashboard.guard import guarded
from workbench.dashboard.inspector import inert, table
from workbench.dashboard.run import Turn, one_line
from workbench.dashboard.visit import Visit
from workbench.decoders import Decoder
from workbench.engine.model import LanguageModel
from workbench.errors import BadInput
from workbench.experiments.lossless import Verdict, lossless

__all__ = ["outputs", "panel", "start", "stop", "tick"]

BEAT_S = 0.5
TOKENS = 48
IDLE = (
    "Measures the decoder of the settings on the prompt above: greedy texts token by token, sampled texts seed by seed,"
    " and, where seeds differ, many short runs, cut to the likeliest tokens and uncut, against their exact distributions."
)


class Meter(threading.Thread):
    """`lossless` in a thread of its own.

    who: the visitor whose it is. verdict: what it found; error: the line that says why it failed.
    """

    def __init__(self, decoder: Decoder, lm: LanguageModel, prompt: Any, who: str = "", **settings: Any):
        super().__init__(daemon=True, name="lossless")
        self.decoder, self.lm, self.prompt, self.settings = decoder, lm, prompt, settings
        self.verdict: Verdict | None = None
        self.turn = Turn(who)
        self.error, self.now, self._halt = "", (0, 1), threading.Event()

    @property
    def over(self) -> bool:
        return not self.is_alive()

    def start(self) -> None:
        """Begin. Raises BadInput where too many runs are being decoded already."""
        self.turn.take()
        super().start()

    def stop(self) -> None:
        """End the count; the verdict is that of the runs so far, if they are a hundred."""
        self._halt.set()

    def counted(self, done: int, runs: int) -> bool:
        """Where the count is; True ends it."""
        self.now = (done, runs)
        return self._halt.is_set() or self.turn.over

    def run(self) -> None:
        try:
            self.verdict = lossless(self.decoder, self.lm, [self.prompt], progress=self.counted, **self.settings)
        except Exception as error:  # noqa: BLE001  (a measurement that fails is shown, and harms nothing else)
            self.error = one_line(error)
        finally:
            self.turn.give()


def panel(parts: dict[str, Any]) -> None:
    """The button, how far it is, and the verdict."""
    with gr.Row():
        info = "at most; only where the seeds' texts differ"
        parts["counted"] = gr.Slider(200, 5000, 1000, step=100, label="counted runs", info=info, elem_id="counted")
        parts["measure"] = gr.Button("Is it lossless?", variant="primary", size="sm", min_width=140, elem_id="measure")
        parts["enough"] = gr.Button("That is enough", size="sm", interactive=False, min_width=120, elem_id="enough")
    live = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
    plain = {"apply_default_css": False, "padding": False}
    parts["verdict"] = gr.HTML(f'<p class="wb-progress">{IDLE}</p>', js_on_load=live, elem_id="verdict", **plain)
    parts["pulse"] = gr.Timer(BEAT_S, active=False)


def outputs(parts: dict[str, Any]) -> list[Any]:
    """The components that `start`, `stop` and `tick` update."""
    return [parts[name] for name in ("verdict", "measure", "enough", "pulse")]


@guarded
def start(visit: Visit, runs: int, form: Form, *values: Any) -> tuple:
    """Measure the form's decoder, over the form's model, prompt and cache."""
    if visit.meter is not None and not visit.meter.over:
        raise BadInput("a measurement is running; stop it first")
    wanted = form.read(values)
    warm = wanted.settings.get("temperature") or 0.8
    facts = {"tokens": TOKENS, "runs": int(runs), "temperature": warm, "cache": wanted.settings["cache"]}
    visit.meter = Meter(wanted.decoder, wanted.load(), wanted.prompt, visit.client, **facts)
    visit.meter.start()
    return _shown(visit.meter)


@guarded
def stop(visit: Visit) -> tuple:
    """End the count with the runs so far."""
    if visit.meter is None:
        raise BadInput("nothing is being measured")
    visit.meter.stop()
    return _shown(visit.meter)


@guarded
def tick(visit: Visit) -> tuple:
    """A look at how far it is."""
    return _shown(visit.meter) if visit.meter is not None else (gr.skip(),) * 3 + (gr.Timer(active=False),)


def _shown(meter: Meter) -> tuple:
    over = meter.over
    if meter.error:
        said = f'<p class="wb-progress">{inert(meter.error)}</p>'
    elif meter.verdict:
        said = _report(meter.verdict)
    else:
        done, runs = meter.now
        bar = f'<progress max="{runs}" value="{done}" aria-label="runs counted"></progress> ' if done else ""
        text = f"{done} of {runs} runs counted" if done else "comparing texts with plain decoding …"
        said = f'<p class="wb-progress">{bar}{text}</p>'
    return said, gr.update(interactive=over), gr.update(interactive=not over), gr.Timer(active=not over)


def _report(found: Verdict) -> str:
    word = {True: "the guarantee holds", False: "the guarantee does NOT hold", None: "a distribution of its own"}[
        found.holds
    ]
    rows = [
        ("temperature 0", inert(found.guarantee_greedy), inert(found.greedy), inert(found.greedy_note)),
        ("sampling", inert(found.guarantee_sampled), inert(found.sampled), inert(found.sampled_note)),
    ]
    shown = table(("at", "guarantees", "found", "how it was found"), rows, "guarantee and finding")
    return f'<p class="wb-verdict"><b>{inert(found.badge)}</b>: {word}.</p>{shown}'
