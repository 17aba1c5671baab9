"""Experiments on the form's model: decoders and cache stacks in one table, and whether a decoder is lossless."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr
import pandas as pd

import workbench as wb
from workbench.dashboard.html import block, button, inert, line, number, table
from workbench.dashboard.jobs import Job
from workbench.dashboard.limits import LONG
from workbench.dashboard.share import as_file
from workbench.dashboard.visits import Visit, guarded
from workbench.errors import BadInput
from workbench.experiments.compare import Arm, Comparison
from workbench.experiments.lossless import Verdict, lossless
from workbench.report.headline import size

__all__ = ["BASELINE", "add", "comparing", "export", "measuring", "start", "stop", "tick"]

BASELINE = "plain"
PLAIN = wb.Autoregressive()
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
BEAT_S = 0.5
HEADINGS = {
    "arm": "arm", "guarantee": "guarantee", "verified_by": "verified by", "prompts": "prompts", "tokens": "tokens",
    "tokens_per_target_forward": "tokens / target forward", "draft_acceptance_rate": "draft acceptance",
    "cache_bytes": "peak cache", "bits_per_element": "bits / element",
    "kl_nats": "KL from the full cache (nats / token)", "same_text": "same text",
    "repeated_4gram_share": "repeated 4-grams", "ms_per_token": "ms / token", "speedup": "speed-up",
}  # fmt: skip
IDLE = "Choose what to compare, and press Compare. The plain decoder over the full cache is always the baseline."
TOKENS = 48
UNMEASURED = (
    "Measures the decoder of the settings on the prompt above: greedy texts token by token, sampled texts seed by seed,"
    " and, where seeds differ, many short runs, cut to the likeliest tokens and uncut, against their exact"
    " distributions."
)
HOLDS = {True: "the guarantee holds", False: "the guarantee does NOT hold", None: "a distribution of its own"}
OUTPUTS = {  # of each experiment: what it says, its button, and the one that stops it; its timer comes after them
    "compare": ("progress", "compared", "csv", "json", "compare", "stop"),
    "measure": ("verdict", "measure", "enough"),
}


class Compared(Job):
    """A `Comparison` of arms with plain decoding over the full cache.

    Raises BadInput, before any work, where a prompt, an arm or a setting does not fit.
    """

    def __init__(self, lm: Any, prompts: Sequence[Any], arms: Mapping[str, Arm], who: str = "", **settings: Any):
        super().__init__("comparison", who)
        self.lm, self.settings = lm, settings
        own = {name: value for name, value in settings.items() if name != "cache"}  # every arm has its own
        self.comparison = Comparison(lm, prompts, {BASELINE: Arm(PLAIN), **arms}, gaps=True, **own)
        self._rows: tuple[int, list[dict[str, Any]]] = (0, [])  # prompts in it, the rows

    def work(self) -> None:
        for _ in self.comparison:
            if self.turn.over:
                self.error = LONG
            if self._halt.is_set() or self.error:
                return

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the comparison, made again only where a prompt more is finished."""
        finished = len(self.comparison.found)
        if finished != self._rows[0]:
            self._rows = (finished, self.comparison.rows())
        return self._rows[1]

    def shown(self) -> tuple:
        """How far it is, its table, and whether that can be saved."""
        rows, runs = self.rows(), self.comparison
        finished, prompts = len(runs.found), len(runs.prompts)
        whole = f"{finished} of {prompts} prompts"
        text = f"Decoding prompt {min(finished + 1, prompts)} of {prompts} under {runs.now or 'the first arm'!r} …"
        if self.over:
            text = f"Done: {whole}." if finished == prompts else f"Stopped: {whole} are in the table."
        saved = gr.update(interactive=bool(rows))
        cells = ([_cell(name, row) for name in HEADINGS] for row in rows)
        made = table(HEADINGS.values(), cells, name="wb-rows wb-compared") if rows else ""
        bar = f'<progress max="{runs.total}" value="{runs.done}" aria-label="runs done"></progress>'
        return line(self.error or text, f"{bar} {runs.done} of {runs.total} runs. "), made, saved, saved


class Measured(Job):
    """The losslessness meter. verdict: what it found; now: runs counted, and how many there will be."""

    def __init__(self, decoder: Any, lm: Any, prompt: Any, who: str = "", **settings: Any):
        super().__init__("lossless", who)
        self.decoder, self.lm, self.prompt, self.settings = decoder, lm, prompt, settings
        self.verdict: Verdict | None = None
        self.now = (0, 1)

    def counted(self, done: int, runs: int) -> bool:
        """Where the count is; True ends it. The verdict is that of the runs so far, if they are a hundred."""
        self.now = (done, runs)
        return self._halt.is_set() or self.turn.over

    def work(self) -> None:
        self.verdict = lossless(self.decoder, self.lm, [self.prompt], progress=self.counted, **self.settings)

    def shown(self) -> tuple:
        """The verdict, or how far it is."""
        (done, runs), found = self.now, self.verdict
        if self.error:
            return (line(self.error),)
        if found is None:
            bar = f'<progress max="{runs}" value="{done}" aria-label="runs counted"></progress> ' if done else ""
            return (line(f"{done} of {runs} runs counted" if done else "comparing texts with plain decoding …", bar),)
        rows = [
            ("temperature 0", found.guarantee_greedy, found.greedy, found.greedy_note),
            ("sampling", found.guarantee_sampled, found.sampled, found.sampled_note),
        ]
        cells = [map(inert, row) for row in rows]
        made = table(("at", "guarantees", "found", "how it was found"), cells, "guarantee and finding")
        return (f'<p class="wb-verdict"><b>{inert(found.badge)}</b>: {HOLDS[found.holds]}.</p>{made}',)


def comparing() -> None:
    """What to compare, how far it is, and the table."""
    gr.CheckboxGroup(list(ARMS), value=CHOSEN, label="compared with plain decoding", elem_id="arms")
    with gr.Row():
        button("add", "Add the settings' decoder and cache", 160)
        many = f"beside the prompt above, at most {MAX_PROMPTS}"
        gr.Slider(0, MAX_PROMPTS, 0, step=1, label="held-out prompts", info=many, elem_id="prompts")
        button("compare", "Compare", 100, variant="primary")
        button("stop", "Stop", interactive=False)
    block("progress", line(IDLE), live=True)
    block("compared")
    with gr.Row():
        for kind in ("csv", "json"):
            button(kind, f"Save as {kind.upper()}", 100, interactive=False)


def measuring() -> None:
    """The button, how far it is, and the verdict."""
    with gr.Row():
        info = "at most; only where the seeds' texts differ"
        gr.Slider(200, 5000, 1000, step=100, label="counted runs", info=info, elem_id="counted")
        button("measure", "Is it lossless?", 140, variant="primary")
        button("enough", "That is enough", 120, interactive=False)
    block("verdict", line(UNMEASURED), live=True)


@guarded
def add(visit: Visit, chosen: list[str], *values: Any) -> Any:
    """Offer the form's decoder and cache as an arm, and choose it."""
    wanted = visit.form.read(values)
    cache = " + ".join(wanted.cached) or "full cache"
    name = f"{len(visit.arms) + 1}: {wanted.decoder.declared_name} over {cache}"
    visit.arms[name] = Arm(wanted.decoder, wanted.settings["cache"])
    return gr.update(choices=[*ARMS, *visit.arms], value=[*chosen, name])


def _compared(visit: Visit, chosen: list[str], held_out: int, *values: Any) -> Compared:
    """A comparison with the form's model, prompt, sampling and limits."""
    known = {**ARMS, **visit.arms}
    arms = {name: known[name] for name in chosen if name in known}
    if not 0 < len(arms) <= MAX_ARMS:
        raise BadInput(f"choose between 1 and {MAX_ARMS} arms to compare with {BASELINE} decoding, not {len(arms)}")
    if not 0 <= held_out <= MAX_PROMPTS:
        raise BadInput(f"held-out prompts: expected at most {MAX_PROMPTS}, got {held_out}")
    wanted = visit.form.read(values)
    prompts = [wanted.prompt, *(row["prompt"] for row in wb.held_out_prompts(int(held_out)))]
    return Compared(wanted.load(), prompts, arms, visit.client, **wanted.settings)


def _measured(visit: Visit, runs: int, *values: Any) -> Measured:
    """A measurement of the form's decoder, over the form's model, prompt and cache."""
    wanted = visit.form.read(values)
    warm = wanted.settings.get("temperature") or 0.8
    facts = {"tokens": TOKENS, "runs": int(runs), "temperature": warm, "cache": wanted.settings["cache"]}
    return Measured(wanted.decoder, wanted.load(), wanted.prompt, visit.client, **facts)


@guarded
def start(visit: Visit, *values: Any, kind: str) -> tuple:
    """Begin an experiment with what the page says."""
    if kind in visit.jobs and not visit.jobs[kind].over:
        raise BadInput(f"a {'comparison' if kind == 'compare' else 'measurement'} is running; stop it first")
    job = (_compared if kind == "compare" else _measured)(visit, *values)
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


def _cell(name: str, row: dict[str, Any]) -> str:
    value = row[name]
    if name == "cache_bytes":
        return size(value)
    if name == "guarantee" and row["cache"]:
        return inert(f"{value}, under its cache")
    return number(value or None if name == "verified_by" else value)


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
