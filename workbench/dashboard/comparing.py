"""Compare: several decoders and cache stacks on one or many prompts, as one table."""

import json
from typing import Any

import gradio as gr
import pandas as pd

from workbench.cache import H2O, SnapKV, StreamingLLM, as_stack
from workbench.cache.codecs import KIVI
from workbench.dashboard.form import Form
from workbench.dashboard.guard import guarded
from workbench.dashboard.inspector import inert, number, table
from workbench.dashboard.share import as_file
from workbench.dashboard.trial import BASELINE, Trial
from workbench.dashboard.visit import Visit
from workbench.decoders import Autoregressive, EntropyAdaptive, Speculative
from workbench.errors import BadInput
from workbench.experiments.compare import Arm
from workbench.report.headline import size
from workbench.speculation import CopySpec, FixedTree
from workbench.training.prompts import held_out_prompts

__all__ = ["ARMS", "add", "export", "panel", "start", "stop", "tick"]

PLAIN = Autoregressive()
ARMS = {
    "draft model, chain": Arm(Speculative()),
    "draft model, tree": Arm(Speculative(shape=FixedTree())),
    "copied drafts": Arm(Speculative(drafter=CopySpec())),
    "entropy-adaptive": Arm(EntropyAdaptive()),
    "h2o 128": Arm(PLAIN, as_stack(H2O(budget=128))),
    "streaming 4 + 124": Arm(PLAIN, as_stack(StreamingLLM(sinks=4, window=124))),
    "snapkv 128": Arm(PLAIN, as_stack(SnapKV(budget=128))),
    "kivi 4 bits": Arm(PLAIN, as_stack(KIVI(bits=4))),
    "kivi 2 bits": Arm(PLAIN, as_stack(KIVI(bits=2))),
    "chain over h2o 128 + kivi 4": Arm(Speculative(), as_stack([H2O(budget=128), KIVI(bits=4)])),
}
CHOSEN = ("draft model, chain", "copied drafts", "h2o 128", "kivi 4 bits")
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


def panel(parts: dict[str, Any]) -> None:
    """What to compare, how far it is, and the table."""
    parts["arms"] = gr.CheckboxGroup(
        list(ARMS), value=list(CHOSEN), label="compared with plain decoding", elem_id="arms"
    )
    with gr.Row():
        parts["add"] = gr.Button("Add the settings' decoder and cache", size="sm", min_width=160, elem_id="add")
        many = f"beside the prompt above, at most {MAX_PROMPTS}"
        parts["prompts"] = gr.Slider(0, MAX_PROMPTS, 0, step=1, label="held-out prompts", info=many, elem_id="prompts")
        parts["compare"] = gr.Button("Compare", variant="primary", size="sm", min_width=100, elem_id="compare")
        parts["stop"] = gr.Button("Stop", size="sm", interactive=False, min_width=80, elem_id="stop")
    live = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
    plain = {"apply_default_css": False, "padding": False}
    parts["progress"] = gr.HTML(_bar(0, 1, IDLE), js_on_load=live, elem_id="progress", **plain)
    parts["table"] = gr.HTML("", js_on_load=None, elem_id="compared", **plain)
    with gr.Row():
        for kind in ("csv", "json"):
            label = f"Save as {kind.upper()}"
            parts[kind] = gr.Button(label, size="sm", interactive=False, min_width=100, elem_id=kind)
    parts["beat"] = gr.Timer(BEAT_S, active=False)


def outputs(parts: dict[str, Any]) -> list[Any]:
    """The components that `start`, `stop` and `tick` update."""
    return [parts[name] for name in ("progress", "table", "compare", "stop", "csv", "json", "beat")]


@guarded
def add(visit: Visit, chosen: list[str], form: Form, *values: Any) -> Any:
    """Offer the form's decoder and cache as an arm, and choose it."""
    wanted = form.read(values)
    stack = wanted.settings["cache"]
    members = [m.declared_name for m in (stack.policy, stack.quantizer) if m] if stack else ["full cache"]
    name = f"{len(visit.arms) + 1}: {wanted.decoder.declared_name} over {' + '.join(members)}"
    visit.arms[name] = Arm(wanted.decoder, stack)
    return gr.update(choices=[*ARMS, *visit.arms], value=[*chosen, name])


@guarded
def start(visit: Visit, chosen: list[str], held_out: int, form: Form, *values: Any) -> tuple:
    """Begin a comparison with the form's model, prompt, sampling and limits."""
    if visit.trial is not None and not visit.trial.over:
        raise BadInput("a comparison is running; stop it first")
    known = {**ARMS, **visit.arms}
    arms = {name: known[name] for name in chosen if name in known}
    if not 0 < len(arms) <= MAX_ARMS:
        raise BadInput(f"choose between 1 and {MAX_ARMS} arms to compare with {BASELINE} decoding, not {len(arms)}")
    if not 0 <= held_out <= MAX_PROMPTS:
        raise BadInput(f"held-out prompts: expected at most {MAX_PROMPTS}, got {held_out}")
    wanted = form.read(values)
    prompts = [wanted.prompt, *(row["prompt"] for row in held_out_prompts(int(held_out)))]
    trial = Trial(wanted.load(), prompts, arms, visit.client, **wanted.settings)
    trial.start()
    visit.trial = trial
    return _shown(trial)


@guarded
def stop(visit: Visit) -> tuple:
    """Stop the comparison; prompts that are finished stay in the table."""
    if visit.trial is None:
        raise BadInput("no comparison is running")
    visit.trial.stop()
    visit.trial.join()
    return _shown(visit.trial)


@guarded
def tick(visit: Visit) -> tuple:
    """A look at how far the comparison is."""
    return _shown(visit.trial) if visit.trial is not None else (gr.skip(),) * 6 + (gr.Timer(active=False),)


def _shown(trial: Trial) -> tuple:
    rows, over = trial.rows(), trial.over
    runs = trial.comparison
    finished, prompts = len(runs.found), len(runs.prompts)
    if trial.error:
        text = trial.error
    elif over:
        whole = f"{finished} of {prompts} prompts"
        text = f"Done: {whole}." if finished == prompts else f"Stopped: {whole} are in the table."
    else:
        text = f"Decoding prompt {min(finished + 1, prompts)} of {prompts} under {runs.now or 'the first arm'!r} …"
    saved = gr.update(interactive=bool(rows))
    return (
        _bar(runs.done, runs.total, text), _table(rows), gr.update(interactive=over), gr.update(interactive=not over),
        saved, saved, gr.Timer(active=not over),
    )  # fmt: skip


def _bar(done: int, total: int, text: str) -> str:
    bar = f'<progress max="{total}" value="{done}" aria-label="runs done"></progress> {done} of {total} runs. '
    return f'<p class="wb-progress">{bar if done or total > 1 else ""}{inert(text)}</p>'


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    cells = ([_cell(name, row) for name in HEADINGS] for row in rows)
    return table(HEADINGS.values(), cells, name="wb-rows wb-compared")


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
    if visit.trial is None or not (rows := visit.trial.rows()):
        raise BadInput("nothing to save yet; compare first")
    if kind == "csv":
        return as_file("comparison.csv", pd.DataFrame(rows).to_csv(index=False), "text/csv")
    settings = {name: str(value) for name, value in visit.trial.settings.items()}
    whole = {"model": str(visit.trial.lm.name), "settings": settings, "rows": rows}
    return as_file("comparison.json", json.dumps(whole, indent=2), "application/json")
