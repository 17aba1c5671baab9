"""The setup row: what the form says, in a chip a group, and the button that runs it."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import gradio as gr

from workbench import web
from workbench.dashboard.form import Form, Wanted
from workbench.dashboard.presets import presets
from workbench.dashboard.visits import Visit, one_line
from workbench.declare import to_dict
from workbench.errors import WorkbenchError
from workbench.trace import tables

GROUPS = ("Prompt", "Decoder", "Cache", "Sampling", "Limits", "Model")
SHORT = 28  # characters of a prompt
SIZES = ("budget", "window", "bits")  # the number that says most of a member of a cache stack
DRAWN = {"temperature": "T", "top_k": "top-k", "top_p": "top-p", "min_p": "min-p", "typical_p": "typical"}


def row() -> gr.HTML:
    """The component; its value is what `shown` returns. Its events: `go`, `start`, `stop`, `preset`, `edited`."""
    return gr.HTML("", elem_id="setup", apply_default_css=False, padding=False, html_template="", js_on_load=_script())


@cache
def _script() -> str:
    return f"{web.script('setup.js')}\nsetup({{ element, props, trigger, watch }});\n"


def shown(visit: Visit) -> str:
    """The JSON text for the row: chips of the form and of the run looked at, presets, what is under way."""
    form = visit.chips or {}
    run = of_run(visit.branch.run.trace.run) if visit.branches else {}
    listed = [{"group": name, "text": form.get(name, ""), "run": run.get(name, "")} for name in GROUPS]
    names = {name: preset.look for name, preset in presets().items()}
    said = {"preset": visit.preset, "trouble": visit.trouble, "refused": visit.refused}
    return web.to_json({"chips": listed, "presets": names, **said})


def chips(form: Form, visit: Visit | None, filled: Sequence[Any] | str) -> str:
    """After a change of the form: the row anew; what does not fit is said in it."""
    if visit is None:
        return ""
    visit.preset = ""
    try:
        wanted = form.checked(filled)
        visit.chips, visit.trouble = _of_form(wanted), ""
        visit.refused = form.refused(filled)
    except (WorkbenchError, ValueError, TypeError) as error:
        visit.trouble = one_line(error)
    return shown(visit)


def _of_form(wanted: Wanted) -> dict[str, str]:
    """What the form asks for, a text a group."""
    settings = wanted.settings
    prompt = wanted.prompt if isinstance(wanted.prompt, str) else wanted.prompt[-1]["content"]
    return {
        "Prompt": _start(prompt),
        "Decoder": _decoder(to_dict(wanted.decoder)) if wanted.decoder else "autoregressive",
        "Cache": _cache(to_dict(settings["cache"]) if settings["cache"] else None),
        "Sampling": _sampling(settings, to_dict(settings["constraint"]) if settings["constraint"] else None),
        "Limits": _limits(settings),
        "Model": " · ".join([wanted.model, *wanted.where.values()]),
    }


def of_run(run: Mapping[str, Any]) -> dict[str, str]:
    """What a recorded run was asked to do, a text a group."""
    return {
        "Prompt": _start(run.get("prompt_text") or ""),
        "Decoder": _decoder(run.get("decoder")),
        "Cache": _cache(run.get("cache")),
        "Sampling": _sampling(run.get("sampling") or {}, run.get("constraint")),
        "Limits": _limits(run),
        "Model": str(tables.model(run, "target").get("name") or "unnamed"),
    }


def _start(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHORT else words[: SHORT - 1] + "…"


def _decoder(declared: Any) -> str:
    """speculative · draft model · tree."""
    if not isinstance(declared, dict):
        return "autoregressive"
    nested = [part for part in (declared.get("settings") or {}).values() if isinstance(part, dict) and "name" in part]
    return " · ".join(str(part.get("name")).replace("_", " ") for part in (declared, *nested[:2]))


def _cache(declared: Any) -> str:
    """h2o 128 + kivi 4."""
    stack = ((declared or {}).get("settings") or {}).values()
    named = []
    for part in (part for part in stack if isinstance(part, dict) and "name" in part):
        numbers = part.get("settings") or {}
        size = next((numbers[name] for name in SIZES if numbers.get(name) is not None), "")
        named.append(f"{part['name']} {size}".strip().replace("_", " "))
    return " + ".join(named) or "full"


def _sampling(sampling: Mapping[str, Any], constraint: Any) -> str:
    """T 0.8 · top-p 0.9 · regex."""
    said = [f"{word} {sampling[name]:g}" for name, word in DRAWN.items() if sampling.get(name)]
    said = said if sampling.get("temperature") else ["greedy"]
    return " · ".join([*said, *([_decoder(constraint)] if isinstance(constraint, dict) else [])])


def _limits(settings: Mapping[str, Any]) -> str:
    return f"{settings.get('max_new_tokens')} tokens · seed {settings.get('seed') or 0}"
