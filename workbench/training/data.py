"""What parts are trained on: text that the target itself continues, mixed with corpus text, and what it makes of it.

Acceptance is the aim, so most windows are the target's own continuations of corpus beginnings, at several temperatures.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from workbench.models.adapter import TransformersModel
from workbench.training import corpus

WINDOW, START = 256, 64  # tokens of a window; of the beginning that the target continues
TEMPERATURES = (0.0, 0.8, 1.0)
OWN_SHARE = 0.75  # windows that the target continues; the others are corpus text throughout
ROWS = 128  # continued at a time


@dataclass(frozen=True)
class Text:
    """Windows of token ids: train [N, T], held_out [M, T] from documents that are trained on by nobody."""

    train: np.ndarray
    held_out: np.ndarray

    def batch(self, step: int, tokens: int, seed: int = 0) -> np.ndarray:
        """[rows, T] of one training step: a function of the step alone, so that a resumed run is the same."""
        rows, count = max(1, tokens // self.train.shape[1]), len(self.train)
        places = (divmod(row, count) for row in range(step * rows, (step + 1) * rows))
        return np.stack(
            [self.train[np.random.default_rng((seed, epoch)).permutation(count)[at]] for epoch, at in places]
        )


class Batch:
    """What the target makes of windows of text; each thing is computed, without gradient, when first asked for.

    tokens: [B, T]. Row t of everything else belongs to the state after token t.
    """

    def __init__(self, lm: TransformersModel, tokens: np.ndarray | torch.Tensor):
        self.lm = lm
        self.tokens = torch.as_tensor(np.asarray(tokens, dtype=np.int64), device=lm.device)

    @cached_property
    @torch.no_grad()
    def states(self) -> tuple[torch.Tensor, ...]:
        """[B, T, width] after 0, 1, … L−1 layers; the last entry is the final state, behind the final norm."""
        return self.lm.model.base_model(self.tokens, use_cache=False, output_hidden_states=True).hidden_states

    @property
    def hidden(self) -> torch.Tensor:
        """[B, T, width] final hidden states, behind the final norm."""
        return self.states[-1]

    @cached_property
    @torch.no_grad()
    def embedded(self) -> torch.Tensor:
        """[B, T, width] input embeddings of the tokens."""
        return self.lm.model.get_input_embeddings()(self.tokens)

    @cached_property
    @torch.no_grad()
    def dist(self) -> torch.Tensor:
        """[B, T, V] the target's log-probabilities of the next token."""
        return self.head(self.hidden).float().log_softmax(-1)

    @cached_property
    def probs(self) -> torch.Tensor:
        """[B, T, V] the target's probabilities of the next token."""
        return self.dist.exp()

    @cached_property
    def best(self) -> torch.Tensor:
        """[B, T] the target's most probable next token."""
        return self.dist.argmax(-1)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """States [..., width] -> the target's logits [..., V], scale and cap included; gradients pass to the states."""
        return self.lm.logits(hidden)

    def cross_entropy(self, hidden: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
        """Mean, in nats, of the head over states [..., width] against probabilities [..., V]."""
        return F.cross_entropy(self.head(hidden).float().flatten(0, -2), probs.flatten(0, -2))

    def agreement(self, hidden: torch.Tensor, where: slice = slice(None)) -> float:
        """Share of states [B, n, width] whose most probable token is the target's at the places `where`."""
        return (self.head(hidden).argmax(-1) == self.best[:, where]).float().mean().item()


def width_of(lm: TransformersModel) -> int:
    """Of the target's hidden states."""
    return lm.model.get_input_embeddings().weight.shape[1]


def drawn(logits: torch.Tensor, generator: torch.Generator, heat: torch.Tensor | float = 1.0) -> torch.Tensor:
    """[..., V] -> [...] tokens at temperature `heat`; 0 is greedy."""
    return (logits - heat * torch.empty_like(logits).exponential_(generator=generator).log()).argmax(-1)  # Gumbel


@contextmanager
def frozen(lm: TransformersModel) -> Iterator[None]:
    """While open, the target's weights take no gradients."""
    weights = [p for p in lm.model.parameters() if p.requires_grad]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def make_text(
    lm: TransformersModel,
    tokens: int,
    folder: Path | None = None,
    seed: int = 0,
    window: int = WINDOW,
    start: int = START,
    held_out: int = 48,
) -> Text:
    """About `tokens` of training text for a target, kept in `folder` as text.npz and read from there the next time.

    A target without tokenizer gets random beginnings.
    """
    facts = f"{lm.name} {lm.vocab_size} {tokens} {window} {start} {held_out} {seed}"
    file = folder and folder / "text.npz"
    if file and file.exists():
        kept = np.load(file)
        if str(kept["facts"]) == facts:
            return Text(kept["train"], kept["held_out"])
    window = min(window, lm.context)
    sizes = {"train": max(1, tokens // window), "held-out": held_out}
    text = Text(*(_windows(lm, split, count, window, min(start, window - 1), seed) for split, count in sizes.items()))
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, train=text.train, held_out=text.held_out, facts=facts)
    return text


def _windows(lm: TransformersModel, split: str, count: int, window: int, start: int, seed: int) -> np.ndarray:
    """[count, window] ids, the target's own continuations first."""
    rows = _corpus(lm, split, count, window, seed)
    own = round(count * OWN_SHARE)
    generator = torch.Generator(lm.device).manual_seed(seed)
    for at in tqdm(range(0, own, ROWS), desc=f"text ({split})", unit="batch", dynamic_ncols=True):
        end = min(at + ROWS, own)
        heat = [TEMPERATURES[row % len(TEMPERATURES)] for row in range(at, end)]
        rows[at:end] = continued(lm, rows[at:end, :start], window, heat, generator)
    return rows


def _corpus(lm: TransformersModel, split: str, count: int, window: int, seed: int) -> np.ndarray:
    """[count, window] ids of corpus text, cut from documents in random order."""
    if lm.tokenizer is None:
        return np.random.default_rng(seed).integers(lm.vocab_size, size=(count, window))
    texts = corpus.documents(split, strict=False)
    random.Random(seed).shuffle(texts)
    ids: list[int] = []
    for text in texts:
        if len(ids) >= count * window:
            break
        ids += [*lm.tokenizer.encode(text, add_special_tokens=False, verbose=False), *sorted(lm.eos_ids)[:1]]
    count = min(count, len(ids) // window)
    rows = np.array(ids[: count * window], dtype=np.int64).reshape(count, window)
    return np.random.default_rng(seed).permutation(rows)


@torch.no_grad()
def continued(
    lm: TransformersModel, starts: np.ndarray, length: int, temperatures: Sequence[float], generator: torch.Generator
) -> np.ndarray:
    """Beginnings [B, n] continued by the target to [B, length]; each row at its own temperature."""
    ids = feed = torch.as_tensor(np.asarray(starts, dtype=np.int64), device=lm.device)
    heat, cache = torch.tensor(temperatures, device=lm.device)[:, None], None
    while ids.shape[1] < length:
        out = lm.model(feed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, feed = out.past_key_values, drawn(out.logits[:, -1].float(), generator, heat)[:, None]
        ids = torch.cat([ids, feed], 1)
    return ids.cpu().numpy()
