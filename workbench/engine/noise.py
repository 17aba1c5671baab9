"""Seeded randomness: every number is a hash of (seed, purpose, absolute position, index), never a running stream.

A purpose whose draws at one position must not depend on each other counts them as branches (0 by default). The runs of
several samples differ by the seed alone: `seed_of_sample` is taken once, before everything.

Hence the same seed gives the same draws whatever was stepped back, forked or drafted in between, and two purposes
("target", "draft", "accept", "residual") never share a number. The hash is the finaliser of SplitMix64 (Steele, Lea and
Flood, "Fast Splittable Pseudorandom Number Generators"); uniforms are float64 in the open interval (0, 1).
"""

import torch

__all__ = ["gumbel", "gumbel_rows", "seed_of_sample", "uniform"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_SAMPLE = 0xD1B54A32D192ED03  # apart from the constants above, so that no sample meets the key of a purpose
_PURPOSES = {"target": 1, "draft": 2, "accept": 3, "residual": 4, "match": 5}


def _mix(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


def _key(seed: int, purpose: str, position: int, branch: int = 0) -> int:
    key = _mix(seed + _GOLDEN)
    key = _mix(key + _PURPOSES[purpose] * _GOLDEN)
    key = _mix(key + (position + 1) * _GOLDEN)
    return _mix(key + branch * _GOLDEN) if branch else key


def seed_of_sample(seed: int, sample: int) -> int:
    """The seed that the draws of sample `sample` take; that of sample 0 is `seed` itself."""
    return _mix((_mix(seed + _GOLDEN) ^ _SAMPLE) + sample * _GOLDEN) if sample else seed


def uniform(seed: int, purpose: str, position: int, index: int = 0) -> float:
    """One number in (0, 1) for the `index`-th draw of a purpose at a position."""
    return ((_mix(_key(seed, purpose, position) + (index + 1) * _GOLDEN) >> 12) + 0.5) * 2.0**-52


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def gumbel(seed: int, purpose: str, position: int, ids: torch.Tensor, branch: int = 0) -> torch.Tensor:
    """Standard Gumbel noise for the given token ids, float64, same shape and device as `ids`.

    Entry i depends on (seed, purpose, position, ids[i], branch) alone; in branch 0 it equals
    −log(−log(uniform(…, index=ids[i]))).
    """
    return _gumbel((ids.to(torch.int64) + 1) * _signed(_GOLDEN) + _signed(_key(seed, purpose, position, branch)))


def gumbel_rows(seed: int, purpose: str, positions: torch.Tensor, size: int) -> torch.Tensor:
    """Gumbel noise for token ids 0 .. size−1 at several positions: int64 [R] -> float64 [R, size].

    Row i equals `gumbel(seed, purpose, positions[i], ids)`; the positions may be known to the device alone.
    """
    start = _mix(_mix(seed + _GOLDEN) + _PURPOSES[purpose] * _GOLDEN)
    keys = _finalise((positions + 1) * _signed(_GOLDEN) + _signed(start))
    ids = torch.arange(1, size + 1, device=positions.device) * _signed(_GOLDEN)
    return _gumbel(ids + keys[:, None])


def _finalise(value: torch.Tensor) -> torch.Tensor:
    """`_mix` of int64 with the bits of uint64."""
    value = (value ^ _shift(value, 30)) * _signed(_FIRST)
    value = (value ^ _shift(value, 27)) * _signed(_SECOND)
    return value ^ _shift(value, 31)


def _gumbel(value: torch.Tensor) -> torch.Tensor:
    return -torch.log(-torch.log((_shift(_finalise(value), 12).to(torch.float64) + 0.5) * 2.0**-52))
