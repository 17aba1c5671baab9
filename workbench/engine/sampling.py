"""Sampling settings, and the distribution they make of a model's logits.

Order as in transformers, behind what a constraint allows: processors, temperature, top-k, top-p, min-p, typical. The
raw distribution (temperature 1, nothing cut) and the distribution sampled from are kept apart in a `Distribution`; at
temperature 0 the latter is the point mass on the largest processed logit (lowest id wins a tie).

Sources: top-p, "The Curious Case of Neural Text Degeneration"; min-p, "Turning Up the Heat: Min-p Sampling"; typical,
"Locally Typical Sampling".
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from workbench.declare import Declared, setting
from workbench.engine.distribution import Distribution
from workbench.engine.vocabulary import widened
from workbench.errors import BadInput, NumericalError, WorkbenchError, shown
from workbench_kernels.distribution import native

COLDEST = 1e-30  # a temperature below it is 0: differences of logits over it overflow float32


def _read_processors(given: object) -> tuple[Callable, ...]:
    """The callables, in order; one alone needs no list."""
    if given is None:
        return ()
    listed = isinstance(given, list | tuple)
    for processor in given if listed else (given,):
        if not callable(processor) or isinstance(processor, type):
            wanted = "callables (input_ids, scores) -> scores, in a list"
            raise BadInput(f"processors: expected {wanted}, got {shown(processor)}")
    return tuple(given) if listed else (given,)


@dataclass(frozen=True)
class Sampling(Declared):
    """How the next token is drawn.

    `processors` are callables (input_ids [1, n], scores [1, V]) -> scores, as in transformers; they must be pure in
    their arguments, since a speculative decoder calls them several times a token. `masks` are those of a run's
    constraint, which the run itself puts there: whatever makes distributions of its settings is held to them.
    """

    temperature: float = setting(
        0.0, ge=0, le=100, help="0 takes the most probable token; 1 samples the model's own distribution"
    )
    top_k: int | None = setting(None, ge=1, help="keep the k most probable tokens")
    top_p: float | None = setting(None, gt=0, le=1, help="keep the smallest set of tokens with at least this mass")
    min_p: float | None = setting(None, ge=0, le=1, help="keep tokens at least this probable, relative to the best one")
    typical_p: float | None = setting(
        None, gt=0, le=1, help="keep tokens of about the expected surprise, up to this mass"
    )
    processors: tuple[Callable, ...] = setting(
        (),
        kind="object",
        trust="owner",
        read=_read_processors,
        help="callables (input_ids, scores) -> scores, in order",
    )
    masks: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def dist(self, logits: torch.Tensor, prefixes: Callable[[int], Sequence[int]]) -> Distribution:
        """The distributions of R rows. logits: [R, V]; `prefixes(i)` gives the token ids before row i's draw.

        Raises NumericalError where a logit is NaN or infinite.
        """
        logits = scores = wide(logits)
        code = native.code_for(logits)
        best, sane = native.best(code, logits) if code else (None, finite(logits).item())
        if not sane:
            raise NumericalError("the model returned NaN or infinite logits; check its weights and dtype")
        allowed = None if self.masks is None else self.masks.rows(len(logits), prefixes, logits.device)
        if allowed is not None:
            best, logits = None, widened(logits, allowed[0].shape[1])
            scores = logits.masked_fill(~allowed[0], -torch.inf)
        if self.processors:
            best = None
            scores = torch.cat([self._process(prefixes(i), scores[i : i + 1].clone()) for i in range(len(scores))])
            if allowed is not None:
                scores = scores.masked_fill(~allowed[0], -torch.inf)
                if (scores.amax(-1) == -torch.inf).any():
                    raise NumericalError("the logits processors left no token that the constraint allows")
        elif self.plain and allowed is None:
            return Distribution(None, None, [()] * len(logits), logits=logits)
        if self.greedy:
            return Distribution(None, scores, [("greedy",)] * len(logits), True, logits, best, allowed)
        heated = self._heat(scores)
        logp, removed = self.cut(heated)
        return Distribution(None, logp, self._cut_by(heated, removed, allowed), logits=logits, allowed=allowed)

    @property
    def plain(self) -> bool:
        """True where the distribution sampled from is the raw distribution itself."""
        return self.temperature == 1 and not self.processors and not self.filters

    def _heat(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores over the temperature; where that overflows, their distances from the largest over it."""
        if self.temperature == 1:
            return scores
        heated = scores / self.temperature
        if self.temperature > 1 or torch.isfinite(heated.amax(-1)).all():
            return heated
        return (scores.double() - scores.amax(-1, keepdim=True)) / self.temperature

    def _process(self, prefix: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor([list(prefix)], device=scores.device)
        fault = ""
        for processor in self.processors:
            scores = processed(processor, ids, scores)
            what = self._fault(scores.amax().item())
            fault = what and (fault or f"the logits processor {name_of(processor)} {what}")  # a later one may mend it
        if fault:
            raise NumericalError(f"{fault}; expected scores that leave a token to draw")
        return scores

    def _fault(self, best: float) -> str:
        """What is wrong with processed scores of which the largest is `best`; empty where nothing is."""
        if math.isnan(best):
            return "returned NaN"
        if best == -math.inf:
            return "ruled out every token"
        return "" if self.greedy or best < math.inf else "gave a token an infinite score"

    @property
    def filters(self) -> list[str]:
        """Names of the filters that are set, in the order in which they act."""
        return [name for name, (_, idle) in FILTERS.items() if getattr(self, name) not in (None, idle)]

    def cut(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities [R, V] after the filters, and bool [R, filters], which of them removed something. Copies
        nothing to the host."""
        logp, filters = scores.log_softmax(-1), self.filters
        removed = torch.zeros(len(logp), len(filters), dtype=torch.bool, device=logp.device)
        for number, name in enumerate(filters):
            alive = logp > -torch.inf
            kept = FILTERS[name][0](logp, getattr(self, name)) & alive
            removed[:, number] = kept.sum(-1) < alive.sum(-1)
            logp = logp.masked_fill(~kept, -torch.inf).log_softmax(-1)
        return logp, removed

    def _cut_by(
        self, scores: torch.Tensor, removed: torch.Tensor, allowed: tuple[torch.Tensor, list[bool]] | None
    ) -> list[tuple[str, ...]]:
        """For each row what removed tokens."""
        gone, names = scores.log_softmax(-1).isinf() if self.processors else None, [()] * len(scores)
        if allowed is not None:
            names = [("grammar",) if cuts else () for cuts in (~allowed[0]).any(-1).tolist()]
            gone = gone & allowed[0] if self.processors else None
        if gone is not None:
            names = [one + ("processors",) * more for one, more in zip(names, gone.any(-1).tolist(), strict=True)]
        return [first + named(self.filters, row) for first, row in zip(names, removed.tolist(), strict=True)]


def named(filters: Sequence[str], removed: Sequence[bool]) -> tuple[str, ...]:
    """Those of the filters that removed something in a row."""
    return tuple(name for name, removes in zip(filters, removed, strict=True) if removes)


def name_of(processor: Callable) -> str:
    """What messages and traces call a processor."""
    return getattr(processor, "__name__", type(processor).__name__)


def processed(processor: Callable, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """What a processor makes of scores [1, V]; BadInput, naming it, where that is no such tensor.

    The caller's own code may raise what it likes; what a class of transformers raises comes as BadInput.
    """
    try:
        found = processor(ids, scores)
    except Exception as error:
        if isinstance(error, WorkbenchError) or not type(processor).__module__.startswith("transformers."):
            raise
        raise BadInput(f"the logits processor {name_of(processor)} failed: {error}") from error
    if not isinstance(found, torch.Tensor):
        raise BadInput(
            f"the logits processor {name_of(processor)} returned {shown(found)}; expected a tensor of scores"
        )
    if found.shape != scores.shape or not found.is_floating_point() or found.device != scores.device:
        got = f"{tuple(found.shape)} {found.dtype} on {found.device}"
        wanted = f"{tuple(scores.shape)} {scores.dtype} on {scores.device}"
        raise BadInput(f"the logits processor {name_of(processor)} returned scores {got}; expected {wanted}")
    return found.to(scores.dtype)


def wide(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 or wider."""
    return logits if logits.dtype == torch.float64 else logits.float()


def finite(logits: torch.Tensor) -> torch.Tensor:
    """bool []: every logit is finite; not copied to the host."""
    low, high = torch.aminmax(logits)
    return torch.isfinite(low) & torch.isfinite(high)


def keep_top_k(logp: torch.Tensor, k: int) -> torch.Tensor:
    """True for the k largest entries of each row (all entries tied with the k-th are kept)."""
    return logp >= logp.topk(min(k, logp.shape[-1])).values[..., -1:]


def keep_top_p(logp: torch.Tensor, mass: float) -> torch.Tensor:
    """True for the smallest set of largest entries whose probabilities reach `mass`; at least one."""
    return _up_to(mass, logp.exp(), logp.argsort(descending=True, stable=True))


def keep_min_p(logp: torch.Tensor, share: float) -> torch.Tensor:
    """True for entries with p ≥ share · max p."""
    best = logp.amax(-1, keepdim=True)
    return logp >= best + _log(share, logp.dtype)


@lru_cache
def _log(share: float, dtype: torch.dtype) -> float:
    """The logarithm as that dtype computes it."""
    return torch.log(torch.tensor(share, dtype=dtype)).item()


def keep_typical(logp: torch.Tensor, mass: float) -> torch.Tensor:
    """True for the entries whose surprise is nearest the entropy, up to `mass`; at least one."""
    probs = logp.exp()
    entropy = torch.special.entr(probs).sum(-1, keepdim=True)
    distance = (-logp - entropy).abs().masked_fill(probs == 0, torch.inf)
    return _up_to(mass, probs, distance.argsort(stable=True))


def _up_to(mass: float, probs: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """True for the first entries of each row, in that order, whose probabilities reach `mass`; at least one."""
    ordered = probs.gather(-1, order).double()
    kept = ordered.cumsum(-1) - ordered < mass
    kept[..., 0].fill_(True)
    return torch.zeros_like(kept).scatter(-1, order, kept)


FILTERS = {  # name -> the rule, and the value at which it keeps all
    "top_k": (keep_top_k, None),
    "top_p": (keep_top_p, 1),
    "min_p": (keep_min_p, 0),
    "typical_p": (keep_typical, 1),
}
