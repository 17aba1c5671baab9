"""The distribution of what verification emits, by chi-square: natively, it is the target's, whatever was drafted.

Under the interpreter `tests/engine/test_device_law.py` shows the same of whole decoders.
"""

import pytest
import torch
from scipy import stats

from workbench_kernels import verification
from workbench_kernels.verification import DIST

P = torch.tensor([0.45, 0.30, 0.15, 0.10])
Q = torch.tensor([0.10, 0.20, 0.30, 0.40])  # far from P, so that rejections and residuals carry much of the mass
TREES = 300


def first_tokens(children: int, device: str, implementation: str, seed: int = 41) -> torch.Tensor:
    """[TREES] the first token emitted after each root, whose children are drawn from Q without replacement."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(Q.expand(TREES, 4), children, generator=generator)
    tokens = torch.cat([torch.zeros(TREES, 1, dtype=torch.int64), drawn], 1).int()
    parents = torch.tensor([-1] + [0] * children).expand(TREES, -1).int()
    depths = torch.tensor([0] + [1] * children).expand(TREES, -1).int()
    kinds = torch.full((TREES, children + 1), DIST).int()
    rows = torch.tensor([0] + [-1] * children).expand(TREES, -1).int()
    logits = P.log().expand(TREES, children + 1, 4).contiguous()
    trees = (logits, tokens, parents, depths, kinds, rows, torch.arange(TREES), Q.log()[None])
    found = verification.verify(*(part.to(device) for part in trees), seed, children, implementation)
    assert found.implementation == implementation
    accepted = tokens.gather(1, found.path[:, :1].cpu().clamp_min(0).long())[:, 0].long()
    return torch.where(found.length.cpu() > 0, accepted, found.token.cpu())


def p_value(tokens: torch.Tensor) -> float:
    counts = torch.bincount(tokens, minlength=4).numpy()
    wanted = P.double().numpy()
    return float(stats.chisquare(counts, wanted / wanted.sum() * TREES).pvalue)


@pytest.mark.gpu
def test_the_first_token_follows_the_target():
    """Two siblings drawn without replacement."""
    assert p_value(first_tokens(2, "cuda", "triton")) > 1e-4


@pytest.mark.gpu
def test_without_the_residual_the_same_test_fails():
    """Drawing from the whole target after a rejection puts too much on what the draft offers."""
    tokens = first_tokens(1, "cuda", "triton")
    generator = torch.Generator().manual_seed(1)
    drawn = torch.multinomial(Q.expand(TREES, 4), 1, generator=generator)[:, 0]
    kept = torch.rand(TREES, generator=generator) < (P / Q)[drawn]
    plain = torch.multinomial(P.expand(TREES, 4), 1, generator=generator)[:, 0]
    assert p_value(torch.where(kept, drawn, plain)) < 1e-4 < p_value(tokens)
