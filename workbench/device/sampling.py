"""Next-token distributions on the device: what `Sampling` and `Distribution` compute, without one copy to the host on
the way.

The torch path is `Sampling.cut`. Where Triton runs and at most one filter is set (the kernel does not tell which of
several removed a token), the fused kernels take its place.
"""

from dataclasses import dataclass

import torch

from workbench.engine.distribution import figures
from workbench.engine.sampling import Sampling, finite, wide
from workbench_kernels import distribution
from workbench_kernels.noise import reference as noise


@dataclass(slots=True)
class DeviceDistributions:
    """The distributions of R rows.

    raw, scores: [R, V] as in `Distribution`; removed: bool [R, filters], which filter removed something; finite: bool
    [], every logit is finite.
    """

    raw: torch.Tensor
    scores: torch.Tensor
    removed: torch.Tensor
    finite: torch.Tensor


class DeviceSampling:
    """The sampling settings of a run as functions of tensors.

    implementation: `auto`, `triton` or `torch`, for the rows a token is drawn from.
    """

    def __init__(self, sampling: Sampling, seed: int, implementation: str = "auto"):
        self.sampling, self.seed = sampling, seed
        self.greedy = sampling.greedy
        self._implementation = implementation
        self.filters = [] if self.greedy else sampling.filters
        self.sampled = not self.greedy and not sampling.plain  # from another distribution than the raw one

    def chooses(self, logits: torch.Tensor) -> str:
        """`triton` or `torch`: what draws from rows of logits [R, V]."""
        if len(self.filters) > 1 or "typical_p" in self.filters:
            return "torch"
        return distribution.choose(logits, self._implementation).name

    def dists(self, logits: torch.Tensor) -> DeviceDistributions:
        """logits [R, V] -> their distributions, as `Sampling.dist` gives them."""
        logits = wide(logits)
        sane, raw = finite(logits), logits.log_softmax(-1)
        if self.sampled:
            temperature = self.sampling.temperature
            scores, removed = self.sampling.cut(logits / temperature if temperature != 1 else logits)
        else:
            scores = logits if self.greedy else raw
            removed = torch.zeros(len(raw), len(self.filters), dtype=torch.bool, device=raw.device)
        return DeviceDistributions(raw, scores, removed, sane)

    def decide(self, logits: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, DeviceDistributions]:
        """What plain decoding takes in each row, int64 [R], at int64 positions [R] on the device; and the
        distributions."""
        if self.chooses(logits) == "triton":
            return self._fused(logits, positions)
        dists = self.dists(logits)
        return self.draw(dists, positions, 1, "target")[0][:, 0], dists

    def draw(
        self, dists: DeviceDistributions, positions: torch.Tensor, count: int, purpose: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` tokens of each row, without replacement: the best at temperature 0, else seeded draws.

        Returns ids int64 [R, count] in draw order, and bool [R, count], whether the distribution had a token left to
        draw.
        """
        scores = dists.scores
        if self.greedy:
            perturbed = scores
        else:
            perturbed = scores.double() + noise.gumbel_rows(self.seed, purpose, positions, scores.shape[-1])
        ids = perturbed.argmax(-1, keepdim=True) if count == 1 else perturbed.topk(count).indices
        return ids, scores.gather(-1, ids) > -torch.inf

    def figures(self, dists: DeviceDistributions, ids: torch.Tensor) -> torch.Tensor:
        """The float64 table of `distribution.figures` for the tokens `ids` [R] that were taken."""
        return figures(dists.raw, dists.scores if self.sampled else None, ids[:, None])

    def _fused(self, logits: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, DeviceDistributions]:
        sampling, heat = self.sampling, self.sampling.temperature or 1.0
        rules = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        found = distribution.sample(logits, *rules, self.seed, positions, implementation="triton")
        logits = logits.float()
        raw = logits - found.raw.lse[:, None]
        scores, removed = logits if self.greedy else raw, raw.new_zeros(len(raw), len(self.filters), dtype=torch.bool)
        if self.sampled:
            edge, last = found.threshold[:, None], found.threshold_id[:, None]
            ids = torch.arange(logits.shape[1], device=logits.device)
            kept = (logits > edge) | ((logits == edge) & (ids <= last))
            scores = (logits / heat - found.lse[:, None]).masked_fill(~kept, -torch.inf)
            removed = removed | (found.kept < logits.shape[1])[:, None]
        return found.token.clamp_min(0), DeviceDistributions(raw, scores, removed, finite(logits))


def fit(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Log-probabilities [R, V'] on a vocabulary that is as large or larger: ids that are lacking have none."""
    lacking = size - rows.shape[-1]
    return rows if not lacking else torch.cat([rows, rows.new_full((len(rows), lacking), -torch.inf)], -1)
