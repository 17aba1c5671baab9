"""Next-token distributions, row by row: statistics, and the seeded draw after temperature, top-k, top-p and min-p.

The Triton kernels read each row of logits from memory once; the torch references define what they must give. The
functions raise ValueError where an argument does not fit, RuntimeError with the reason where Triton is asked for and
cannot run.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from workbench_kernels.dispatch import Choice, decide, refuse_dtypes
from workbench_kernels.distribution import reference

__all__ = ["Sample", "Statistics", "choose", "sample", "statistics"]

TRITON_COLUMNS = 2**24 - 1


class Statistics(NamedTuple):
    """Figures of R rows of logits.

    Attributes
    ----------
    lse: [R] log-sum-exp of the logits, in nats; log p = logits - lse.
    entropy: [R] in nats.
    varentropy: [R] variance of the surprisal, in nats squared.
    argmax: [R] int64, the most probable token; the lowest id wins a tie.
    implementation: `triton` or `torch`, what computed the figures.
    """

    lse: Tensor
    entropy: Tensor
    varentropy: Tensor
    argmax: Tensor
    implementation: str


class Sample(NamedTuple):
    """One token per row, and what it was drawn from: p(x) = exp(logit(x) / temperature - lse) on the kept tokens.

    Attributes
    ----------
    token: [R] int64, -1 for a row that is no distribution (its other figures are NaN, its counts 0).
    p: [R] probability of the token.
    kept: [R] int64, how many tokens are kept.
    lse: [R] log-sum-exp of logits / temperature over the kept tokens (temperature 1 in place of 0).
    entropy: [R] in nats.
    threshold, threshold_id: [R] logit and int64 id of the last kept token: kept are the tokens of larger logits, and
        those of that logit with an id up to that one. -inf and V - 1 where no filter cuts.
    raw: the `Statistics` of the logits themselves.
    """

    token: Tensor
    p: Tensor
    kept: Tensor
    lse: Tensor
    entropy: Tensor
    threshold: Tensor
    threshold_id: Tensor
    raw: Statistics


def statistics(logits: Tensor, implementation: str = "auto") -> Statistics:
    """Figures of softmax(logits), in float32 (float64 for float64 logits).

    Parameters
    ----------
    logits: [R, V] with V >= 1; -inf marks tokens that are cut. A row that holds NaN or +inf, or nothing but -inf, is
        no distribution: its entropy and varentropy are NaN.
    implementation: `triton`, `torch`, or `auto`, which takes Triton on a GPU where it can.
    """
    _check(logits, "statistics")
    chosen = choose(logits, implementation).name
    if chosen == "torch":
        return Statistics(*reference.statistics(logits), chosen)
    from workbench_kernels.distribution import kernel

    return Statistics(*kernel.launch(logits, kernel.Rules())[:4], chosen)


def sample(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
    min_p: float | None = None, seed: int = 0, positions: Tensor | None = None, implementation: str = "auto",
) -> Sample:  # fmt: skip
    """Draw one token per row by seeded Gumbel-max: the argmax of logits / temperature + noise over the kept tokens.

    The noise of a token is a hash of (seed, "target", position, id) in float64 (SplitMix64), so a draw depends on
    nothing that was computed before or beside it. The filters follow one another as in transformers, each on what the
    one before has left, renormalised: top-k keeps all tokens tied with the k-th, top-p the smallest set of most
    probable tokens (lowest id first) that reaches the mass, min-p the tokens with p >= min_p max p. Logits are divided
    by the temperature in float32, probabilities summed to one part in 10^6: where a filter's boundary or a draw's
    margin is closer than that, rounding decides.

    Parameters
    ----------
    logits: [R, V], -inf marks tokens that are cut; a row that is no distribution is flagged (`Sample.token`).
    temperature: > 0; 0 takes the largest logit, lowest id first, without noise.
    top_k: >= 1; top_p: in (0, 1]; min_p: in [0, 1]; None (or 1 and 0) cuts nothing.
    seed: any int. positions: [R] int64, absolute position of each row's token; 0, 1, ... by default.
    implementation: `triton`, `torch`, or `auto`, which takes Triton on a GPU where it can. Triton takes two launches,
        four where a filter is set.
    """
    _check(logits, "sample")
    rows, cols = logits.shape
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"sample: expected a temperature of 0 or more, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"sample: expected top_k of 1 or more, got {top_k}")
    if (top_p is not None and not 0 < top_p <= 1) or (min_p is not None and not 0 <= min_p <= 1):
        raise ValueError(f"sample: expected top_p in (0, 1] and min_p in [0, 1], got {top_p} and {min_p}")
    if positions is None:
        positions = torch.arange(rows, device=logits.device)
    if positions.shape != (rows,) or positions.dtype != torch.int64 or positions.device != logits.device:
        raise ValueError(
            f"sample: expected int64 positions [{rows}] on {logits.device}, "
            f"got {positions.dtype} {list(positions.shape)} on {positions.device}"
        )
    top_k = None if top_k is None or top_k >= cols else top_k
    top_p, min_p = (None if top_p == 1 else top_p), (min_p or None)
    chosen = choose(logits, implementation).name
    if chosen == "torch":
        raw = Statistics(*reference.statistics(logits), chosen)
        return Sample(*reference.sample(logits, temperature, top_k, top_p, min_p, seed, positions), raw)
    from workbench_kernels.distribution import kernel

    if temperature == 0:
        return _greedy(Statistics(*kernel.launch(logits, kernel.Rules())[:4], chosen), logits)
    rules = kernel.Rules(True, temperature, top_k, top_p, min_p)
    figures = kernel.launch(logits, rules, seed, positions.contiguous())
    return Sample(*figures[4:], Statistics(*figures[:4], chosen))


def _greedy(raw: Statistics, logits: Tensor) -> Sample:
    """The point mass on the argmax."""
    bad = raw.entropy.isnan()
    token = raw.argmax.masked_fill(bad, -1)
    nothing = raw.entropy * 0  # 0, NaN for no distribution
    best = logits.gather(-1, token.clamp_min(0)[:, None])[:, 0].float() + nothing
    return Sample(token, nothing + 1, (~bad).long(), best, nothing, best, token, raw)


def choose(logits: Tensor, implementation: str = "auto") -> Choice:
    """`triton` or `torch`, and why: what would compute these logits' figures. Raises as `statistics` does."""
    return decide(logits.device.type, lambda: _refusal(logits), implementation, "distribution")


def _refusal(logits: Tensor) -> str | None:
    if odd := refuse_dtypes("the logits are", logits.dtype):
        return odd
    if logits.shape[-1] > TRITON_COLUMNS:
        return f"it takes at most {TRITON_COLUMNS} columns, and the logits have {logits.shape[-1]}"
    return None


def _check(logits: Tensor, name: str) -> None:
    if logits.ndim != 2 or not logits.shape[1] or not logits.is_floating_point():
        raise ValueError(f"{name}: expected floating logits [R, V], got {logits.dtype} {list(logits.shape)}")
