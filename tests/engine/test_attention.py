"""Attention over segments: a causal run is the run with its mask spelt out, whatever lies before the rows."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.rounding import close
from workbench.cache.protocol import Segment
from workbench.engine.attention import attend, column_mass

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
HEADS, KV_HEADS, DIM = 4, 2, 16


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows, keys", [(1, 1), (5, 5), (1, 40), (5, 40), (40, 41)])
@pytest.mark.parametrize("before", [0, 7])
def test_causal_means_that_the_rows_are_the_last_keys(device, rows, keys, before):
    """Alone, and joined with a segment that every row sees; the control is the mask's other corner."""
    q = random(1, HEADS, rows, DIM, seed=0).to(device)
    k, v = (random(KV_HEADS, before + keys, DIM, seed=seed).to(device) for seed in (1, 2))
    seen = torch.ones(rows, before + keys, dtype=torch.bool, device=device).tril(before + keys - rows)
    causal = [Segment(k[:, before:], v[:, before:], causal=True)]
    causal = [Segment(k[:, :before], v[:, :before]), *causal] if before else causal
    for found, wanted in (
        (attend(q, causal, 0.25), attend(q, [Segment(k, v, seen)], 0.25)),
        (column_mass(q, causal, 0.25, [0, rows - 1]), column_mass(q, [Segment(k, v, seen)], 0.25, [0, rows - 1])),
    ):
        assert close(found, wanted, terms=DIM + before + keys)
    if rows > 1 and before + keys > rows:
        corner = torch.ones_like(seen).tril()
        assert (attend(q, causal, 0.25) - attend(q, [Segment(k, v, corner)], 0.25)).abs().max() > 0.01


@pytest.mark.gpu
def test_a_chain_behind_a_prefix_reaches_flash_attention():
    """Grouped heads of bf16 with no other kernel allowed; a mask would be refused there."""
    q = random(1, HEADS, 5, 64, seed=0).cuda()
    k, v = (random(KV_HEADS, 300, 64, seed=seed).cuda() for seed in (1, 2))
    seen = torch.ones(5, 300, dtype=torch.bool, device="cuda").tril(295)
    wanted = attend(q, [Segment(k, v, seen)], 0.125)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        found = attend(q.bfloat16(), [Segment(k.bfloat16(), v.bfloat16(), causal=True)], 0.125)
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-2)  # bf16 keeps eight bits
