"""Seeded noise: the same for the same key however it is asked for, uniform, and independent between keys."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from workbench_kernels.noise import reference as noise

PURPOSES = list(noise.PURPOSES)


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("seed", [0, 1, 2**40 + 17, 2**63 - 1])
def test_torch_and_python_agree(seed, purpose):
    """gumbel(…)[i] is −log(−log(uniform(…, index=ids[i]))): one hash, written twice."""
    ids = torch.tensor([0, 1, 2, 3, 1000, 151_935])
    for position in (0, 1, 7, 4095):
        found = noise.gumbel(seed, purpose, position, ids).tolist()
        expected = [-math.log(-math.log(noise.uniform(seed, purpose, position, i))) for i in ids.tolist()]
        assert found == pytest.approx(expected, rel=1e-13, abs=1e-13)


def test_an_entry_depends_on_its_own_id_alone():
    every = noise.gumbel(3, "target", 5, torch.arange(50))
    some = torch.tensor([41, 3, 17])
    assert torch.equal(noise.gumbel(3, "target", 5, some), every[some])


def grid(seed: int = 9) -> np.ndarray:
    """[purpose, position, index] uniforms of one seed."""
    return np.array([[[noise.uniform(seed, p, s, i) for i in range(40)] for s in range(100)] for p in PURPOSES])


def test_uniform_by_chi_square():
    values = grid().ravel()
    assert values.min() > 0 and values.max() < 1
    assert stats.chisquare(np.histogram(values, bins=64, range=(0, 1))[0]).pvalue > 1e-4


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["purposes", "positions", "indices"])
def test_neighbours_are_independent(axis):
    """Pairs one step apart along any part of the key fill an 8 × 8 table evenly; so do neighbouring seeds."""
    values = np.moveaxis(grid(), axis, 0)
    pairs = [(values[:-1], values[1:]), (grid(9), grid(10))]
    for first, second in pairs:
        table = np.histogram2d(first.ravel(), second.ravel(), bins=8, range=[(0, 1)] * 2)[0]
        assert stats.chisquare(table.ravel()).pvalue > 1e-4


def test_no_two_keys_share_a_number():
    values = np.concatenate([grid(9).ravel(), grid(10).ravel()])
    assert len(np.unique(values)) == len(values)


def test_the_interval_is_open(monkeypatch):
    """The largest and the smallest hash still give a finite Gumbel number: 1 − 2⁻⁵³ would round to 1."""
    for extreme in (0, 2**64 - 1):
        monkeypatch.setattr(noise, "mix", lambda value, extreme=extreme: extreme)
        u = noise.uniform(0, "target", 0)
        assert 0 < u < 1
        assert math.isfinite(-math.log(-math.log(u)))
