"""Sampling settings, and the law they make of a model's logits.

Order as in transformers: processors, temperature, top-k, top-p, min-p, typical. The raw law (temperature 1, nothing
cut) and the law sampled from are kept apart in a `Law`; at temperature 0 the latter is the point mass on the largest
processed logit (lowest id wins a tie).

Sources: top-p, "The Curious Case of Neural Text Degeneration"; min-p, "Turning Up the Heat: Min-p Sampling"; typical,
"Locally Typical Sampling".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from workbench.declare import Declared, setting
from workbench.engine.distribution import Law
from workbench.errors import BadInput, NumericalError

__all__ = ["Sampling"]


@dataclass(frozen=True)
class Sampling(Declared):
    """How the next token is drawn.

    `processors` are callables (input_ids [1, n], scores [1, V]) -> scores, as in transformers; they must be pure in
    their arguments, since a speculative decoder calls them several times a token.
    """

    temperature: float = setting(
        0.0, ge=0, le=100, help="0 takes the most probable token; 1 samples the model's own law"
    )
    top_k: int | None = setting(None, ge=1, help="keep the k most probable tokens")
    top_p: float | None = setting(None, gt=0, le=1, help="keep the smallest set of tokens with at least this mass")
    min_p: float | None = setting(None, ge=0, le=1, help="keep tokens at least this probable, relative to the best one")
    typical_p: float | None = setting(
        None, gt=0, le=1, help="keep tokens of about the expected surprise, up to this mass"
    )
    processors: tuple[Callable, ...] = field(default=())

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "processors", tuple(self.processors or ()))
        for processor in self.processors:
            if not callable(processor):
                raise BadInput(f"processors: expected callables (input_ids, scores) -> scores, got {processor!r}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def law(self, logits: torch.Tensor, prefixes: Callable[[int], Sequence[int]]) -> Law:
        """The laws of R rows. logits: [R, V]; `prefixes(i)` gives the token ids before row i's draw.

        Raises NumericalError where a logit is NaN or infinite.
        """
        scores = logits if logits.dtype == torch.float64 else logits.float()
        low, high = torch.aminmax(scores)
        if not (torch.isfinite(low) & torch.isfinite(high)).item():
            raise NumericalError("the model returned NaN or infinite logits; check its weights and dtype")
        raw = scores.log_softmax(-1)
        if self.processors:
            scores = torch.cat([self._process(prefixes(i), scores[i : i + 1]) for i in range(len(scores))])
        elif self.plain:
            return Law(raw, raw, [()] * len(raw))
        if self.greedy:
            return Law(raw, scores, [("greedy",)] * len(raw), greedy=True)
        return Law(raw, *self._cut(scores / self.temperature if self.temperature != 1 else scores))

    @property
    def plain(self) -> bool:
        """True where the law sampled from is the raw law itself."""
        return self.temperature == 1 and not self.processors and not self._filters()

    def _process(self, prefix: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor([list(prefix)], device=scores.device)
        for processor in self.processors:
            scores = processor(ids, scores)
        if torch.isnan(scores).any() or torch.isinf(scores.amax()):
            raise NumericalError("a logits processor returned NaN, or ruled out every token")
        return scores

    def _filters(self) -> list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]]:
        chosen = []
        if self.top_k is not None:
            chosen.append(("top_k", lambda logp: keep_top_k(logp, self.top_k)))
        if self.top_p is not None and self.top_p < 1:
            chosen.append(("top_p", lambda logp: keep_top_p(logp, self.top_p)))
        if self.min_p:
            chosen.append(("min_p", lambda logp: keep_min_p(logp, self.min_p)))
        if self.typical_p is not None and self.typical_p < 1:
            chosen.append(("typical_p", lambda logp: keep_typical(logp, self.typical_p)))
        return chosen

    def _cut(self, scores: torch.Tensor) -> tuple[torch.Tensor, list[tuple[str, ...]]]:
        """Log-probabilities after the filters, and for each row the filters that removed something."""
        logp = scores.log_softmax(-1)
        cut_by: list[tuple[str, ...]] = [() for _ in range(len(logp))]
        if self.processors:
            cut = torch.isinf(logp).any(-1).tolist()
            cut_by = [("processors",) if c else () for c in cut]
        for name, keep in self._filters():
            alive = logp > -torch.inf
            kept = keep(logp) & alive
            for row, removed in enumerate((kept.sum(-1) < alive.sum(-1)).tolist()):
                if removed:
                    cut_by[row] += (name,)
            logp = logp.masked_fill(~kept, -torch.inf).log_softmax(-1)
        return logp, cut_by


def keep_top_k(logp: torch.Tensor, k: int) -> torch.Tensor:
    """True for the k largest entries of each row (all entries tied with the k-th are kept)."""
    return logp >= logp.topk(min(k, logp.shape[-1])).values[..., -1:]


def keep_top_p(logp: torch.Tensor, mass: float) -> torch.Tensor:
    """True for the smallest set of largest entries whose probabilities reach `mass`; at least one."""
    ordered, index = logp.sort(descending=True, stable=True)
    probs = ordered.exp().double()
    kept = probs.cumsum(-1) - probs < mass
    kept[..., 0].fill_(True)
    return torch.zeros_like(kept).scatter(-1, index, kept)


def keep_min_p(logp: torch.Tensor, share: float) -> torch.Tensor:
    """True for entries with p ≥ share · max p."""
    best = logp.amax(-1, keepdim=True)
    return logp >= best + torch.log(torch.tensor(share, dtype=logp.dtype, device=logp.device))


def keep_typical(logp: torch.Tensor, mass: float) -> torch.Tensor:
    """True for the entries whose surprise is nearest the entropy, up to `mass`; at least one."""
    probs = logp.exp()
    entropy = torch.special.entr(probs).sum(-1, keepdim=True)
    distance = (-logp - entropy).abs().masked_fill(probs == 0, torch.inf)
    index = distance.argsort(stable=True)
    ordered = probs.gather(-1, index).double()
    kept = ordered.cumsum(-1) - ordered < mass
    kept[..., 0].fill_(True)
    return torch.zeros_like(kept).scatter(-1, index, kept)
