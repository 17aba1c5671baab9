"""Signals: what a controller may read of a next-token distribution, a number for each row.

Each function takes rows of log-probabilities [..., V] in nats (`energy` takes logits) and gives a tensor [...].
`read` takes one, by its name, from a `Distribution`: from `raw`, the model's own, or `sampled`, the one drawn from.
"""

import math
from typing import Any

import torch

from workbench.errors import BadInput, shown


def entropy(logp: torch.Tensor) -> torch.Tensor:
    """−Σ p log p; an impossible token adds nothing."""
    return -(logp.exp() * logp.clamp_min(-1e4)).sum(-1)


def renyi2(logp: torch.Tensor) -> torch.Tensor:
    """−log Σ p², Rényi's entropy of order two, never above `entropy`."""
    return -(2 * logp).logsumexp(-1)


def varentropy(logp: torch.Tensor) -> torch.Tensor:
    """The variance of −log p."""
    bounded = logp.clamp_min(-1e4)
    return (logp.exp() * (bounded + entropy(logp)[..., None]) ** 2).sum(-1)


def max_p(logp: torch.Tensor) -> torch.Tensor:
    """The largest probability."""
    return logp.amax(-1).exp()


def margin(logp: torch.Tensor) -> torch.Tensor:
    """The largest probability minus the second."""
    return -logp.topk(2).values.exp().diff()[..., 0]


def logit_gap(logp: torch.Tensor) -> torch.Tensor:
    """The largest log-probability minus the second; of logits the same."""
    return -logp.topk(2).values.diff()[..., 0]


def energy(logits: torch.Tensor) -> torch.Tensor:
    """−log Σ exp(logit), the free energy; unlike all others, it moves with a constant added to the logits."""
    return -logits.logsumexp(-1)


def surprise(logp: torch.Tensor, token: int) -> torch.Tensor:
    """−log p of a token."""
    return -logp[..., token]


UNITS = {
    "entropy": "nats", "renyi2": "nats", "varentropy": "nats²", "max_p": "probability", "margin": "probability",
    "logit_gap": "nats", "energy": "nats", "surprise": "nats",
}  # fmt: skip
BITS = 1 / math.log(2)  # in a nat


def read(name: str, dist: Any, row: int = 0, of: str = "raw", token: int | None = None) -> float:
    """The signal of a row of a `Distribution`, in its unit of UNITS. token: whose `surprise` it is.

    Raises BadInput for an unknown signal, the energy of what is sampled from, and a surprise of no token.
    """
    if name not in UNITS:
        raise BadInput(f"signal: expected one of {', '.join(UNITS)}, got {shown(name)}")
    if name == "energy" and of != "raw" or name == "surprise" and token is None:
        raise BadInput(f"signal {name!r}: expected {'the raw distribution' if name == 'energy' else 'a token'}")
    if of == "sampled" and dist.greedy:
        raise BadInput(f"signal {name!r}: at temperature 0 no distribution is drawn from; read the raw one")
    rows = dist.logits if name == "energy" else dist.raw if of == "raw" else dist.scores
    return globals()[name](rows[row], *(() if name != "surprise" else (token,))).item()
