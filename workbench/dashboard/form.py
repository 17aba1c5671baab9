"""The form of a run: prompt, model, decoder, cache, sampling and limits, made from the declarations and read back."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from typing import Any

import gradio as gr
import torch

import workbench as wb
from workbench.dashboard import python
from workbench.dashboard.controls import MemberControls, control, meant, shown_value
from workbench.dashboard.uploads import UNFIT, sound, taken
from workbench.declare import describe, models
from workbench.errors import BadInput
from workbench.models.loading import Progress, companion, known_models, load, resolve_device, resolve_dtype
from workbench.session import keywords
from workbench.trace import tables

MAX_PROMPT = 20_000  # characters
MAX_NEW_TOKENS = 512
KINDS = ("text", "chat message")
DTYPES = ("auto", "float32", "bfloat16", "float16")
# In the browser: all values in one text, and what the page says beside them; and back. Each control that is an input or
# output of an event of the server costs the page time with every later event, and there are hundreds.
KEEP = """const kept = JSON.stringify({ key: "KEY", values });
  try { if (kept.length < MOST) localStorage.setItem("workbench-form", kept); } catch { /* it keeps nothing */ }"""
GATHER = f"""(...values) => {{
  {KEEP}
  return JSON.stringify({{ values, told: window.workbenchTold ?? {{}} }});
}}"""
SPREAD = f"""(text) => {{
  const {{ values }} = JSON.parse(text);
  {KEEP}
  return values;
}}"""
MOST_KEPT = 200_000  # characters of a form that the browser keeps, and sends when a page opens
_turns = count()


def spread(values: Sequence[Any]) -> str:
    """What `SPREAD` reads: the form's values. The same ones twice are two texts, so that the page takes notice."""
    return json.dumps({"values": values, "turn": next(_turns)})


def told_beside(text: str) -> dict[str, Any]:
    """What the page says beside the controls' values; nothing where it is not as the page says it."""
    told = _gathered(text).get("told")
    return told if isinstance(told, dict) else {}


def _gathered(text: Any) -> dict[str, Any]:
    """What is in a text that `GATHER` made; nothing where it made none. Raises BadInput for what no page sends."""
    try:
        found = sound(json.loads(text))
    except gr.Error as no:
        raise BadInput(no.message) from None
    except (TypeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Wanted:
    """What the form asks for. `prompt` is text or chat messages; `settings` are those of `workbench.decode`.

    where: `device` and `dtype` of `workbench.load`, as far as they are not the defaults.
    """

    model: str
    where: dict[str, str]
    prompt: Any
    decoder: Any
    settings: dict[str, Any]

    @property
    def cached(self) -> list[str]:
        """The names of the cache's members."""
        stack = self.settings["cache"]
        return [member.declared_name for member in stack.members] if stack else []

    def load(self, progress: Progress | None = None) -> Any:
        """The model."""
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        return load(self.model, progress=progress, **self.where)

    def load_all(self, tell: Callable[..., None]) -> None:
        """The model and those that the decoder uses; `tell` is told the name of each, and its progress."""
        lm = self.load(partial(tell, self.model))
        for name in models(self.decoder) if self.decoder is not None else ():
            companion(lm, name, partial(tell, name))

    def is_of(self, lm: Any) -> bool:
        """Whether a model in memory is the one meant."""
        device = resolve_device(self.where.get("device"))
        dtype = resolve_dtype(self.where.get("dtype"), device)
        return self.model == str(lm.name) and (not self.where or (lm.device == device and dtype in (None, lm.dtype)))


class Form:
    """The controls of a run. The caller places and gives `prompt` and `kind`; the others are drawn here.

    `components` are Gradio components in the order in which `read` expects, and `values` gives, their values.
    anything: the owner sits there: files, and models that are not offered, may be named. Without it, what the
    declarations leave to the owner is refused to whoever asks. device, dtype: chosen at first.
    """

    def __init__(
        self,
        prompt: gr.Textbox,
        kind: gr.Radio,
        models: Sequence[str] = (),
        anything: bool = True,
        device: str = "cpu",
        dtype: str = "auto",
    ):
        self.prompt, self.anything = prompt, anything
        self.first = {"device": device, "dtype": dtype}
        self.models = known = list(dict.fromkeys([*models, *known_models()]))
        where = []
        named = {"models": known, "anything": self.anything}
        with gr.Accordion("Decoder", open=False, elem_id="of-decoder"):
            decoder = MemberControls("decoder", "decoder", "speculative", "how the next tokens are found", **named)
        with gr.Accordion("Model", open=False, elem_id="of-model"):
            about = "embedded, a hub id or a local directory" if self.anything else None
            model = {"info": about, "allow_custom_value": self.anything, "elem_id": "model"}
            self.model = gr.Dropdown(known, value=known[0], label="model", **model)
            where.append(self.model)
            gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
            offered = (("device", "where it runs", ("cpu", "auto", *gpus)), ("dtype", "of its weights", DTYPES))
            with gr.Row():
                for name, about, usual in offered:
                    choices = list(dict.fromkeys([*usual, self.first[name]]))
                    near = {"info": about, "min_width": 110, "interactive": self.anything, "elem_id": name}
                    where.append(gr.Dropdown(choices, value=self.first[name], label=name, **near))
        with gr.Accordion("Cache", open=False, elem_id="of-cache"):
            policy = MemberControls("policy", "cache policy", None, "which tokens stay", nothing="all stay", **named)
            about = "how they are stored"
            quantizer = MemberControls("quantizer", "cache quantizer", None, about, nothing="as they are", **named)
            reader = MemberControls("reader", "cache reader", None, "which of them are read", nothing="all", **named)
            self.stack = {entry.name: control(entry) for entry in describe(wb.Stack) if entry.kind != "member"}
        with gr.Accordion("Constraint", open=False, elem_id="of-constraint"):
            about = "which texts may be written"
            constraint = MemberControls("constraint", "constraint", None, about, nothing="all", **named)
        self.families = (decoder, policy, quantizer, reader, constraint)
        drawn = {entry.name for entry in describe(wb.Sampling)}
        shown = {name: entry for name, entry in keywords().items() if entry.kind not in ("object", "member")}
        shown["max_new_tokens"] = replace(shown["max_new_tokens"], le=MAX_NEW_TOKENS)
        widest = {"max_new_tokens": {"widest": MAX_NEW_TOKENS}}
        self.settings = {}
        for title, chosen in (("Sampling", drawn), ("Limits, seed, logging", set(shown) - drawn)):
            with gr.Accordion(title, open=False, elem_id=f"of-{title.split(',')[0].lower()}"):
                entries = [entry for name, entry in shown.items() if name in chosen]
                self.settings |= {entry.name: control(entry, **widest.get(entry.name, {})) for entry in entries}
        self.components = [prompt, kind, *where, *self.settings.values()]
        self.components += [component for family in self.families for component in family.components]
        self.components += self.stack.values()
        self.defaults = {id(component): component.value for component in self.components}
        self.key = hashlib.sha256(repr([one.label for one in self.components]).encode()).hexdigest()[:16]

    def script(self, text: str) -> str:
        """`GATHER` or `SPREAD` for this form."""
        return text.replace("KEY", self.key).replace("MOST", str(MOST_KEPT))

    def kept(self, text: str | None) -> list[Any] | None:
        """The values that a browser has kept; None where they are another form's, or do not fit this one."""
        try:
            found = _gathered(text)
            if found.get("key") == self.key and self.checked(text):
                return found["values"]
        except BadInput:
            pass
        return None

    def of_run(self, run: Mapping[str, Any]) -> tuple[list[Any], str]:
        """The values that a recorded run had, and what of it no form can say. Raises BadInput where it names what is
        not here."""
        decoder, settings = python.asked(run)
        name = tables.model(run, "target").get("name")
        left = {
            "its prompt of ids": not run.get("prompt_text"), "forced tokens": run.get("forced"),
            "the run that it went on from": run.get("parent"), "all stops but one": len(settings.get("stop") or ()) > 1,
            f"the model {name}": not self.anything and name not in self.models,
        }  # fmt: skip
        settings["stop"] = (settings.get("stop") or ())[:1]
        values = self.values(run.get("prompt_text") or "", decoder, settings["cache"], settings)
        if name and (self.anything or name in self.models):
            values[self.components.index(self.model)] = name
        return values, ", ".join(what for what, there in left.items() if there)

    def begin(self, values: Sequence[Any]) -> None:
        """What the form holds as a page opens, while it is built."""
        for component, value in zip(self.components, values, strict=True):
            component.value = value
        for family in self.families:
            for chooser, names, groups in family.groups:
                for name, group in zip(names, groups, strict=True):
                    group.visible = name == chooser.value

    def taken(self, text: str) -> list[Any]:
        """The controls' values in what `GATHER` makes of them. Raises BadInput where one does not fit its control."""
        values = _gathered(text).get("values")
        if not isinstance(values, list) or len(values) != len(self.components):
            raise BadInput(UNFIT)
        return [taken(component, value) for component, value in zip(self.components, values, strict=True)]

    def read(self, values: Sequence[Any] | str) -> Wanted:
        """What the controls' values, or the text that `GATHER` makes of them, ask for. Raises BadInput where one does
        not fit."""
        rest = iter(self.taken(values) if isinstance(values, str) else values)
        prompt, kind, model, device, dtype = islice(rest, 5)
        settings = {name: meant(keywords()[name], next(rest)) for name in self.settings}
        if not isinstance(model, str):
            raise BadInput(f"model: expected a name, got {model!r}")
        if not self.anything and model not in self.models:
            raise BadInput(f"model: only the owner of this app may name another; choose of {', '.join(self.models)}")
        if not self.anything and {"device": device, "dtype": dtype} != self.first:
            raise BadInput("device, dtype: only the owner of this app may choose them; run your own: workbench app")
        if not prompt:
            raise BadInput("the prompt is empty; type one, or choose an example")
        if len(prompt) > MAX_PROMPT:
            raise BadInput(f"the prompt has {len(prompt)} characters; the app takes at most {MAX_PROMPT}")
        if settings["max_new_tokens"] is not None and settings["max_new_tokens"] > MAX_NEW_TOKENS:
            raise BadInput(f"max_new_tokens: the app goes up to {MAX_NEW_TOKENS}; use workbench.decode for more")
        settings["stop"] = settings["stop"] or ()
        members = [family.read([*islice(rest, len(family.components))]) for family in self.families]
        decoder, *stack, settings["constraint"] = members
        settings["cache"] = wb.Stack(*stack, **dict(zip(self.stack, rest, strict=True))) if any(stack) else None
        given = [{"role": "user", "content": prompt}] if kind == "chat message" else prompt
        chosen = (("device", device, "cpu"), ("dtype", dtype, "auto"))
        where = {name: value for name, value, usual in chosen if value and value != usual}
        return Wanted(model, where, given, decoder, settings)

    def checked(self, values: Sequence[Any] | str) -> Wanted:
        """What `read` gives, its sampling checked. Raises BadInput where one does not fit."""
        wanted = self.read(values)
        drawn = {entry.name for entry in describe(wb.Sampling)} & wanted.settings.keys()
        wb.Sampling(**{name: wanted.settings[name] for name in drawn})
        return wanted

    def refused(self, values: Sequence[Any] | str) -> dict[str, dict[str, str]]:
        """What cannot be chosen beside the rest of the form, given as for `read`: see `MemberControls`."""
        values, found = self.taken(values) if isinstance(values, str) else values, {}
        start = len(values) - len(self.stack)
        for family in reversed(self.families):
            start -= len(family.components)
            found |= family.refused(values[start : start + len(family.components)])
        return found

    def values(self, prompt: str, decoder: Any, cache: Any, settings: Mapping[str, Any]) -> list[Any]:
        """The controls' values that ask for these, the first model and the defaults of everything else."""
        entries = keywords()
        rest = [shown_value(entries[name], settings[name]) if name in settings else self.defaults[id(component)]
                for name, component in self.settings.items()]  # fmt: skip
        stack = [getattr(cache, name, None) for name in ("policy", "quantizer", "reader")]
        for family, member in zip(self.families, (decoder, *stack, settings.get("constraint")), strict=True):
            rest += family.values(member, self.defaults)
        rest += [getattr(cache, name, self.defaults[id(component)]) for name, component in self.stack.items()]
        return [prompt, KINDS[0], self.models[0], *self.first.values(), *rest]
