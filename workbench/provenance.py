"""What a trace says about itself: versions, device, models, decoder and settings (the `run` event)."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from workbench.declare import flatten, to_dict
from workbench.decoders import Decoder
from workbench.engine.sampling import name_of
from workbench.errors import BadInput, shown
from workbench.rounds import State
from workbench.trace.schema import GUARANTEES

PACKAGES = ("decoding-workbench", "torch", "transformers", "triton")


@cache
def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def run_event(state: State, decoder: Decoder, prompt_text: str) -> dict:
    """The content of a `run` event for a state at its start. Raises BadInput for a guarantee that there is not."""
    settings, lm = state.settings, state.runners["target"].model
    sampling = settings.sampling
    body, slower = lm.body if state.strategy.name == "stock" else (state.strategy.name, None)
    why = "; ".join(filter(None, (state.strategy.reason, slower)))
    promised = decoder.guarantee(sampling)
    if promised not in GUARANTEES:
        known = ", ".join(GUARANTEES)
        raise BadInput(f"{decoder.declared_name}: guarantee(…) answered {shown(promised)}; expected one of {known}")
    return {
        "versions": versions(),
        "device": device_name(lm.device),
        "body": {"name": body, "reason": why},
        "models": [{"role": role, **runner.model.describe()} for role, runner in state.runners.items()],
        "decoder": to_dict(decoder),
        "guarantee": promised,
        "verified": list(decoder.verified),
        "cache": to_dict(settings.cache) if settings.cache else None,
        "constraint": to_dict(settings.constraint) if settings.constraint else None,
        "sampling": flatten(sampling) | {"processors": [name_of(processor) for processor in sampling.processors]},
        **{name: getattr(settings, name) for name in ("seed", "sample", "level", "max_new_tokens", "max_time")},
        "stop": [entry if isinstance(entry, str) else "callable" for entry in settings.stop],
        "forced": {str(index): token for index, token in settings.force.items()},
        "prompt_ids": state.tokens[: state.prompt_length],
        "prompt_text": prompt_text,
        **({} if (at := state.runners["target"].inexact) is None else {"inexact": at}),
    }
