"""What a trace says about itself: versions, device, models, decoder and settings (the `run` event)."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from workbench.declare import to_dict
from workbench.decoders import Decoder, State
from workbench.device.round import body_of

__all__ = ["run_event", "versions"]

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
    """The content of a `run` event for a state at its start."""
    settings, lm = state.settings, state.runners["target"].model
    sampling = settings.sampling
    return {
        "versions": versions(),
        "device": device_name(lm.device),
        "body": body_of(decoder, state),
        "models": [{"role": role, **runner.model.describe()} for role, runner in state.runners.items()],
        "decoder": to_dict(decoder),
        "guarantee": decoder.guarantee(sampling),
        "verified": list(decoder.verified),
        "cache": to_dict(settings.cache) if settings.cache else None,
        "sampling": {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "typical_p": sampling.typical_p,
            "processors": [getattr(p, "__name__", type(p).__name__) for p in sampling.processors],
        },
        "seed": settings.seed,
        "sample": settings.sample,
        "level": settings.level,
        "max_new_tokens": settings.max_new_tokens,
        "stop": [entry if isinstance(entry, str) else "callable" for entry in settings.stop],
        "forced": {str(index): token for index, token in settings.force.items()},
        "prompt_ids": state.tokens[: state.prompt_length],
        "prompt_text": prompt_text,
    }
