"""Experiments on the form's model: decoders and cache stacks in one table, and whether a decoder is lossless."""

import json
from typing import Any

import gradio as gr
import pandas as pd

import workbench as wb
from workbench.dashboard.comparing import BASELINE, PLAIN, Compared
from workbench.dashboard.html import block, button, line
from workbench.dashboard.paying import NONE, PART, baseline, paying
from workbench.dashboard.share import as_file
from workbench.dashboard.verifying import Measured
from workbench.dashboard.visits import Visit, guarded
from workbench.errors import BadInput
from workbench.experiments.compare import Arm
from workbench.values import bounded

__all__ = ["BASELINE", "add", "baseline", "comparing", "export", "measuring", "paying", "start", "stop", "tick"]

ARMS = {
    "draft model, chain": Arm(wb.Speculative()),
    "draft model, tree": Arm(wb.Speculative(shape=wb.FixedTree())),
    "copied drafts": Arm(wb.Speculative(drafter=wb.CopySpec())),
    "entropy-adaptive": Arm(wb.EntropyAdaptive()),
    "h2o 128": Arm(PLAIN, wb.Stack(wb.H2O(budget=128))),
    "streaming 4 + 124": Arm(PLAIN, wb.Stack(wb.StreamingLLM(sinks=4, window=124))),
    "snapkv 128": Arm(PLAIN, wb.Stack(wb.SnapKV(budget=128))),
    "kivi 4 bits": Arm(PLAIN, wb.Stack(quantizer=wb.KIVI(bits=4))),
    "kivi 2 bits": Arm(PLAIN, wb.Stack(quantizer=wb.KIVI(bits=2))),
    "chain over h2o 128 + kivi 4": Arm(wb.Speculative(), wb.Stack(wb.H2O(budget=128), wb.KIVI(bits=4))),
}
CHOSEN = ["draft model, chain", "copied drafts", "h2o 128", "kivi 4 bits"]
MAX_PROMPTS, MAX_ARMS = 20, 12
PROMPTS, TEXTS = 12, 4  # compared by default; verified: that of the settings, and short held-out ones
BEAT_S = 0.5
IDLE = "Choose what to compare, and press Compare. The plain decoder over the full cache is always the baseline."
UNMEASURED = (
    f"Measures the decoder of the settings against plain decoding on {TEXTS} prompts, that of the settings and short"
    " held-out ones: token by token at temperature 0, seed by seed when sampling, and by counting many short runs where"
    " seeds differ."
)
OUTPUTS = {  # of each experiment: what it says, its button, and what stops it; its timer comes after them
    "compare": ("progress", "compared", "csv", "json", "compare", "stop"),
    "measure": ("verdict", "measure", "enough"),
    "baseline": ("plainly", "pays", "baseline"),  # its button stops it, too
}


def comparing() -> None:
    """What to compare, how far it is, and the charts and table."""
    gr.CheckboxGroup(list(ARMS), value=CHOSEN, label="compared with plain decoding", elem_id="arms")
    with gr.Row():
        button("add", "Add the settings' decoder and cache", 160)
        which = {"info": "that of the settings, then short held-out ones", "min_width": 260, "scale": 2}
        gr.Slider(1, MAX_PROMPTS, PROMPTS, step=1, label="prompts", elem_id="prompts", **which)
        button("compare", "Compare", 100, variant="primary")
        button("stop", "Stop", interactive=False)
    block("progress", line(IDLE), live=True)
    block("compared")
    with gr.Row():
        for kind in ("csv", "json"):
            button(kind, f"Save as {kind.upper()}", 100, interactive=False)


def measuring() -> None:
    """The button, how far it is, the verdict and its gauges; then whether drafting pays."""
    with gr.Row():
        most = {"info": "at most, in all; only where equal texts leave it open", "min_width": 260, "scale": 2}
        gr.Slider(200, 5000, 2000, step=100, label="counted runs", elem_id="counted", **most)
        button("measure", "Is it lossless?", 140, variant="primary")
        button("enough", "That is enough", 120, interactive=False)
    block("verdict", line(UNMEASURED), live=True)
    block("pays", PART + line(NONE))
    with gr.Row():
        button("baseline", "Measure a plain run", 160, interactive=False)
        block("plainly", live=True)


@guarded
def add(visit: Visit, chosen: list[str], filled: str) -> Any:
    """Offer the form's decoder and cache as an arm, and choose it."""
    wanted = visit.form.read(filled)
    cache = " + ".join(wanted.cached) or "full cache"
    name = f"{len(visit.arms) + 1}: {wanted.decoder.declared_name} over {cache}"
    visit.arms[name] = Arm(wanted.decoder, wanted.settings["cache"])
    return gr.update(choices=[*ARMS, *visit.arms], value=[*chosen, name])


def _prompts(first: Any, count: int) -> list[Any]:
    """A prompt, and the shortest held-out ones that are not it: `count` in all."""
    held_out = sorted((row["prompt"] for row in wb.held_out_prompts()), key=len)
    return [first, *[text for text in held_out if text != first][: count - 1]]


def _compared(visit: Visit, chosen: list[str], count: int, filled: str) -> Compared:
    """A comparison with the form's model, prompt, sampling and limits."""
    known = {**ARMS, **visit.arms}
    arms = {name: known[name] for name in chosen if name in known}
    if not 0 < len(arms) <= MAX_ARMS:
        raise BadInput(f"choose between 1 and {MAX_ARMS} arms to compare with {BASELINE} decoding, not {len(arms)}")
    count = bounded("prompts", count, 1, MAX_PROMPTS)
    wanted = visit.form.read(filled)
    prompts = _prompts(wanted.prompt, count)
    return Compared(wanted.load(), prompts, arms, visit.client, [*visit.arms], **wanted.settings)


def _measured(visit: Visit, runs: int, filled: str) -> Measured:
    """A measurement of the form's decoder, over the form's model, prompt, cache and constraint."""
    wanted = visit.form.read(filled)
    warm = wanted.settings.get("temperature") or 0.8
    facts = {"temperature": warm, **{name: wanted.settings[name] for name in ("cache", "constraint")}}
    prompts = _prompts(wanted.prompt, TEXTS)
    return Measured(wanted.decoder, wanted.load(), prompts, visit.client, bounded("counted runs", runs, 200), **facts)


@guarded
def start(visit: Visit, *said: Any, kind: str) -> tuple:
    """Begin an experiment with what the page says."""
    if kind in visit.jobs and not visit.jobs[kind].over:
        raise BadInput(f"a {'comparison' if kind == 'compare' else 'measurement'} is running; stop it first")
    job = (_compared if kind == "compare" else _measured)(visit, *said)
    job.start()
    visit.jobs[kind] = job
    return tick(visit, kind)


@guarded
def stop(visit: Visit, kind: str) -> tuple:
    """End an experiment with what it has so far."""
    if kind not in visit.jobs:
        raise BadInput("no comparison is running" if kind == "compare" else "nothing is being measured")
    visit.jobs[kind].stop()
    if kind == "compare":  # after the round under way; the prompts that are finished stay
        visit.jobs[kind].join()
    return tick(visit, kind)


@guarded
def tick(visit: Visit, kind: str) -> tuple:
    """A look at how far an experiment is."""
    job = visit.jobs.get(kind)
    if job is None:
        return (gr.skip(),) * len(OUTPUTS[kind]) + (gr.Timer(active=False),)
    over = job.over
    return (*job.shown(), gr.update(interactive=over), gr.update(interactive=not over), gr.Timer(active=not over))


@guarded
def export(visit: Visit, kind: str) -> str:
    """The table as a file for the browser to keep."""
    found = visit.jobs.get("compare")
    if found is None or not (rows := found.rows()):
        raise BadInput("nothing to save yet; compare first")
    if kind == "csv":
        return as_file("comparison.csv", pd.DataFrame(rows).to_csv(index=False), "text/csv")
    settings = {name: str(value) for name, value in found.settings.items()}
    whole = {"model": str(found.lm.name), "settings": settings, "rows": rows}
    return as_file("comparison.json", json.dumps(whole, indent=2), "application/json")
