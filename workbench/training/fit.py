"""The one training loop: resumable, logged, with a bar. Hidden matrices by Muon, everything else by AdamW.

Source: Muon ("Muon is Scalable for LLM Training"; torch.optim.Muon).
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from workbench.models.adapter import TransformersModel
from workbench.speculation.heads import weights
from workbench.training.data import Batch, Text, frozen

SAVE_EVERY = 60  # seconds


@dataclass(frozen=True)
class Recipe:
    """Schedule of a training; sizes in tokens. autocast: bf16 for the matrix products."""

    tokens: int = 1_500_000
    batch: int = 2048
    muon_rate: float = 0.01
    adam_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: int = 20
    decay_share: float = 0.6
    seed: int = 0
    autocast: bool = True

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.batch)

    def rate_share(self, step: int) -> float:
        """Share of the full rate: warm-up, plateau, then a linear decay to 2 % over `decay_share` of the steps."""
        start = self.steps * (1 - self.decay_share)
        left = 1 - max(0.0, step - start) / max(1.0, self.steps - start)
        return min(1.0, (step + 1) / self.warmup) * (0.02 + 0.98 * left)


HEADS = Recipe(tokens=800_000, batch=1024, muon_rate=0.02, adam_rate=4e-3)  # of what drafts from the final hidden state


def train(
    name: str,
    module: nn.Module,
    recipe: Recipe,
    losses: Callable[[int], Sequence[Callable[[], torch.Tensor]]],
    out: Path,
    facts: dict[str, Any],
    minutes: float = 1e9,
    quiet: bool = False,
) -> int:
    """Train a module in place, or go on with it; returns the steps that are done.

    losses(step): functions whose results, averaged, are the loss of a step; they depend on the step alone, so that a
    resumed run is the same. facts: tell one training from another.

    A checkpoint <name>.pt in `out` is written every minute, on Ctrl-C and when `minutes` are over; the loss of every
    step goes to <name>.log.jsonl. Raises SystemExit where a checkpoint of another training is in the way.
    """
    device = next(module.parameters()).device
    steppers = optimizers(module, recipe)
    file = out / f"{name}.pt"
    step = _resume(file, module, steppers, facts)
    kept = time.monotonic()
    end = kept + minutes * 60
    log = (out / f"{name}.log.jsonl").open("a")
    bar = tqdm(total=recipe.steps, initial=step, desc=name, unit="step", dynamic_ncols=True, disable=quiet)
    try:
        while step < recipe.steps and time.monotonic() < end:
            share = recipe.rate_share(step)
            for stepper, rate in steppers.items():
                for group in stepper.param_groups:
                    group["lr"] = rate * share
            total, parts = 0.0, losses(step)
            for part in parts:
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.autocast):
                    loss = part() / len(parts)
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad(set_to_none=True)
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{total:.3f}")
            log.write(json.dumps({"step": step, "loss": round(total, 4), "rate": round(share, 4)}) + "\n")
            if time.monotonic() > kept + SAVE_EVERY:
                _keep(file, module, steppers, facts, step)
                log.flush()
                kept = time.monotonic()
    finally:
        _keep(file, module, steppers, facts, step)
        log.close()
        bar.close()
    return step


def optimizers(module: nn.Module, recipe: Recipe) -> dict[torch.optim.Optimizer, float]:
    """Optimizer -> its full rate. Embeddings, vectors and single rows are no hidden matrices."""
    hidden, others = [], []
    for name, weight in module.named_parameters():
        (hidden if weight.ndim == 2 and min(weight.shape) > 1 and "embed" not in name else others).append(weight)
    found: dict[torch.optim.Optimizer, float] = {}
    if hidden:
        muon = torch.optim.Muon(hidden, lr=recipe.muon_rate, weight_decay=recipe.weight_decay, momentum=0.95)
        found[muon] = recipe.muon_rate
    if others:
        found[torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0)] = recipe.adam_rate
    return found


def _resume(file: Path, module: nn.Module, steppers: dict, facts: dict[str, Any]) -> int:
    """Load what a checkpoint holds, where there is one, and return the steps that were done."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True, map_location=next(module.parameters()).device)
    if state["facts"] != facts:
        raise SystemExit(f"{file} was made by another recipe: {state['facts']}; use another folder, or remove it")
    module.load_state_dict(state["model"])
    for stepper, saved in zip(steppers, state["optimizers"], strict=True):
        stepper.load_state_dict(saved)
    return state["step"]


def _keep(file: Path, module: nn.Module, steppers: dict, facts: dict[str, Any], step: int) -> None:
    """Write a checkpoint; one that was there stays whole until the new one is."""
    state = {"model": module.state_dict(), "optimizers": [one.state_dict() for one in steppers]}
    torch.save({**state, "step": step, "facts": facts}, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


@dataclass(frozen=True)
class Part:
    """A trainable part of a drafter, shape or verifier.

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
    """Train a part for a target, or go on with it (see `train`), and write <out>/<kind>.safetensors."""
    recipe = recipe or part.recipe
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    shape = part.shape(lm)
    module = part.make(**shape).to(lm.device).train()

    def losses(step: int) -> list[Callable[[], torch.Tensor]]:
        batch = Batch(lm, text.batch(step, recipe.batch, recipe.seed))
        generator = torch.Generator(lm.device).manual_seed(recipe.seed * 1_000_003 + step)
        return [lambda: part.loss(module, batch, generator)]

    with frozen(lm):
        step = train(kind, module, recipe, losses, out, {"recipe": asdict(recipe), "shape": shape}, minutes, quiet)
    figures = measure(part, module.eval(), lm, text)
    facts = {"recipe": asdict(recipe), "tokens": step * recipe.batch, "held-out": figures}
    if not quiet:
        print(f"{kind}: step {step} of {recipe.steps}; held-out {json.dumps(figures)}")
    return weights.save(out / f"{kind}.safetensors", kind, module, lm, shape, facts)


@torch.no_grad()
def measure(part: Part, module: nn.Module, lm: TransformersModel, text: Text, rows: int = 8) -> dict[str, float]:
    """The part's figures on held-out text, averaged."""
    totals: dict[str, float] = {}
    for at in range(0, len(text.held_out), rows):
        piece = text.held_out[at : at + rows]
        for name, value in part.figures(module, Batch(lm, piece)).items():
            totals[name] = totals.get(name, 0.0) + value * len(piece) / len(text.held_out)
    return {name: round(value, 4) for name, value in totals.items()}
