"""The form of a run: prompt, model, decoder, sampling and limits, made from the declarations and read back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from workbench.dashboard.controls import MemberControls, control
from workbench.declare import describe
from workbench.engine.loading import known_models, load
from workbench.engine.model import LanguageModel
from workbench.engine.sampling import Sampling
from workbench.engine.settings import LEVELS
from workbench.errors import BadInput

__all__ = ["Form", "Wanted"]

MAX_PROMPT = 20_000  # characters
MAX_NEW_TOKENS = 512


@dataclass(frozen=True)
class Wanted:
    """What the form asks for."""

    model: str
    prompt: str
    decoder: Any
    settings: dict[str, Any]

    def load(self) -> LanguageModel:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        return load(self.model)


class Form:
    """The controls of a run. The caller places and gives `prompt`; `draw` makes the others where it is called.

    `components` are Gradio components in the order in which `read` expects their values.
    """

    def __init__(self, prompt: gr.Textbox, models: Sequence[str] = ()):
        self.prompt = prompt
        self.models = list(dict.fromkeys([*models, *known_models()]))

    def draw(self) -> None:
        with gr.Accordion("Model and decoder", open=True):
            self.model = gr.Dropdown(self.models, value=self.models[0], label="model")
            self.decoder = MemberControls("decoder", "decoder", "speculative", "how the next tokens are found")
        with gr.Accordion("Sampling", open=False):
            self.sampling = {entry.name: control(entry) for entry in describe(Sampling)}
        with gr.Accordion("Limits, seed, logging", open=False):
            self.limits = {
                "max_new_tokens": gr.Slider(1, MAX_NEW_TOKENS, 96, step=1, label="max new tokens"),
                "seed": gr.Number(0, precision=0, label="seed", info="of all randomness"),
                "stop": gr.Textbox("", label="stop", info="end once the new text contains this"),
                "ignore_eos": gr.Checkbox(False, label="ignore the end-of-text token"),
                "level": gr.Dropdown(list(LEVELS), value="default", label="level", info="how much is logged"),
            }
        self.components = [
            self.prompt,
            self.model,
            *self.sampling.values(),
            *self.limits.values(),
            *self.decoder.components,
        ]

    def read(self, values: Sequence[Any]) -> Wanted:
        """What the controls' values ask for. Raises BadInput where one does not fit."""
        prompt, model, *rest = values
        n, m = len(self.sampling), len(self.limits)
        settings = dict(zip((*self.sampling, *self.limits), rest[: n + m], strict=True))
        if not prompt:
            raise BadInput("the prompt is empty; type one, or choose an example")
        if len(prompt) > MAX_PROMPT:
            raise BadInput(f"the prompt has {len(prompt)} characters; the app takes at most {MAX_PROMPT}")
        if model not in self.models:
            raise BadInput(f"model {model!r} is not offered; choose one of {', '.join(self.models)}")
        if settings["max_new_tokens"] is not None and settings["max_new_tokens"] > MAX_NEW_TOKENS:
            raise BadInput(f"max_new_tokens: the app goes up to {MAX_NEW_TOKENS}; use workbench.decode for more")
        settings["stop"] = settings["stop"] or ()
        return Wanted(model, prompt, self.decoder.read(list(rest[n + m :])), settings)
