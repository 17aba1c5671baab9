"""The one training loop of all parts: resumable, with a bar. Hidden matrices by Muon, everything else by AdamW."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from workbench.models.adapter import TransformersModel
from workbench.speculation.heads import weights
from workbench.training.checkpoint import Checkpoint, rate_share
from workbench.training.data import Batch, Text, frozen

__all__ = ["Part", "Recipe", "fit", "measure"]

SAVE_EVERY = 60  # seconds


@dataclass(frozen=True)
class Recipe:
    """Schedule of a training; sizes in tokens. autocast: bf16 for the matrix products."""

    tokens: int = 1_500_000
    batch: int = 2048
    muon_rate: float = 0.01
    adam_rate: float = 2e-3
    warmup: int = 20
    decay_share: float = 0.6
    seed: int = 0
    autocast: bool = True

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.batch)


@dataclass(frozen=True)
class Part:
    """A trainable part.

    shape(lm): the keyword arguments `make` builds the module with. loss(module, batch, generator): a scalar, the
    generator for whatever it draws. figures(module, batch): numbers on held-out text, by name.
    """

    make: Callable[..., nn.Module]
    shape: Callable[[TransformersModel], dict[str, Any]]
    loss: Callable[[Any, Batch, torch.Generator], torch.Tensor]
    figures: Callable[[Any, Batch], dict[str, float]]
    recipe: Recipe = field(default_factory=Recipe)


def fit(
    kind: str,
    part: Part,
    lm: TransformersModel,
    text: Text,
    out: Path,
    minutes: float = 1e9,
    recipe: Recipe | None = None,
    quiet: bool = False,
) -> Path:
    """Train a part for a target, or go on with it, and write <out>/<kind>.safetensors.

    A checkpoint <kind>.pt beside it is written every minute, on Ctrl-C and when `minutes` are over; calling again
    resumes from it. Raises SystemExit where a checkpoint of another recipe is in the way.
    """
    recipe = recipe or part.recipe
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    shape = part.shape(lm)
    module = part.make(**shape).to(lm.device).train()
    steppers = optimizers(module, recipe)
    saved = Checkpoint(out / f"{kind}.pt", module, list(steppers), {"recipe": asdict(recipe), "shape": shape})
    step = saved.resume()
    end = time.monotonic() + minutes * 60
    kept = time.monotonic()
    bar = tqdm(total=recipe.steps, initial=step, desc=kind, unit="step", dynamic_ncols=True, disable=quiet)
    try:
        with frozen(lm):
            while step < recipe.steps and time.monotonic() < end:
                for stepper, rate in steppers.items():
                    for group in stepper.param_groups:
                        group["lr"] = rate * rate_share(step, recipe.steps, recipe.warmup, recipe.decay_share)
                batch = Batch(lm, text.batch(step, recipe.batch, recipe.seed))
                generator = torch.Generator(lm.device).manual_seed(recipe.seed * 1_000_003 + step)
                with torch.autocast(lm.device.type, dtype=torch.bfloat16, enabled=recipe.autocast):
                    loss = part.loss(module, batch, generator)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                for stepper in steppers:
                    stepper.step()
                    stepper.zero_grad(set_to_none=True)
                step += 1
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
                if time.monotonic() > kept + SAVE_EVERY:
                    saved.keep(step)
                    kept = time.monotonic()
    finally:
        saved.keep(step)
        bar.close()
    figures = measure(part, module.eval(), lm, text)
    facts = {"recipe": asdict(recipe), "tokens": step * recipe.batch, "held-out": figures}
    if not quiet:
        print(f"{kind}: step {step} of {recipe.steps}; held-out {json.dumps(figures)}")
    return weights.save(out / f"{kind}.safetensors", kind, module, lm, shape, facts)


def optimizers(module: nn.Module, recipe: Recipe) -> dict[torch.optim.Optimizer, float]:
    """Optimizer -> its full rate."""
    matrices = [p for p in module.parameters() if p.ndim == 2 and min(p.shape) > 1]
    others = [p for p in module.parameters() if p.ndim != 2 or min(p.shape) == 1]
    found: dict[torch.optim.Optimizer, float] = {}
    if matrices:
        found[torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.01, momentum=0.95)] = recipe.muon_rate
    if others:
        found[torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0)] = recipe.adam_rate
    return found


@torch.no_grad()
def measure(part: Part, module: nn.Module, lm: TransformersModel, text: Text, rows: int = 8) -> dict[str, float]:
    """The part's figures on held-out text, averaged."""
    totals: dict[str, float] = {}
    pieces = [text.held_out[at : at + rows] for at in range(0, len(text.held_out), rows)]
    for piece in pieces:
        for name, value in part.figures(module, Batch(lm, piece)).items():
            totals[name] = totals.get(name, 0.0) + value * len(piece) / len(text.held_out)
    return {name: round(value, 4) for name, value in totals.items()}
