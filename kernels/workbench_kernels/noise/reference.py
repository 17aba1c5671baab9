"""Counter-based random numbers in torch: each is a pure function of (seed, purpose, position, index), not of a stream.

The same seed gives the same draws whatever was stepped back, forked or drafted in between. Two purposes never share a
number. Draws of one purpose at one position that must be independent differ in their branch (of a draft) or their
hypothesis (of a search), both 0 by default. The hash is
the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators"). Uniforms are
float64 in the open interval (0, 1).
"""

import torch
from torch import Tensor

MASK = (1 << 64) - 1
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# apart from the constants above, so that no sample meets the key of a purpose, and no hypothesis that of a branch
SAMPLE, HYPOTHESIS = 0xD1B54A32D192ED03, 0xAEF17502108EF2D9
PURPOSES = {"target": 1, "draft": 2, "accept": 3, "residual": 4, "match": 5}


def mix(value: int) -> int:
    """SplitMix64's finaliser."""
    value &= MASK
    value = ((value ^ (value >> 30)) * FIRST) & MASK
    value = ((value ^ (value >> 27)) * SECOND) & MASK
    return value ^ (value >> 31)


def signed(value: int) -> int:
    """The int64 with the bits of a uint64."""
    return value - (1 << 64) if value >> 63 else value


def launch_key(seed: int, purpose: str) -> int:
    """int64 key of (seed, purpose), the part of a draw's key that does not depend on its position."""
    return signed(mix(mix(seed + GOLDEN) + PURPOSES[purpose] * GOLDEN))


def position_key(seed: int, purpose: str, position: int, branch: int = 0, hypothesis: int = 0) -> int:
    """uint64 key of all draws of a purpose at a position."""
    key = mix(launch_key(seed, purpose) + (position + 1) * GOLDEN)
    key = mix((key ^ HYPOTHESIS) + hypothesis * GOLDEN) if hypothesis else key
    return mix(key + branch * GOLDEN) if branch else key


def child_of(hypothesis: int, rank: int) -> int:
    """The id, 1 to 2^53 − 1, of the child of that rank (from 0) of a hypothesis."""
    return (mix(mix(hypothesis ^ HYPOTHESIS) + (rank + 1) * GOLDEN) >> 11) or 1


def seed_of_sample(seed: int, sample: int) -> int:
    """The seed that the draws of sample `sample` take; that of sample 0 is `seed` itself."""
    return mix((mix(seed + GOLDEN) ^ SAMPLE) + sample * GOLDEN) if sample else seed


def uniform(seed: int, purpose: str, position: int, index: int = 0) -> float:
    """One number in (0, 1) for the `index`-th draw of a purpose at a position."""
    return ((mix(position_key(seed, purpose, position) + (index + 1) * GOLDEN) >> 12) + 0.5) * 2.0**-52


def gumbel(seed: int, purpose: str, position: int, ids: Tensor, branch: int = 0, hypothesis: int = 0) -> Tensor:
    """Standard Gumbel noise of token ids, float64, of the shape and on the device of `ids`.

    Entry i depends on (seed, purpose, position, ids[i], branch, hypothesis) alone. With branch and hypothesis 0 it
    equals −log(−log(uniform(…, index=ids[i]))).
    """
    key = signed(position_key(seed, purpose, position, branch, hypothesis))
    return gumbel_of((ids.to(torch.int64) + 1) * signed(GOLDEN) + key)


def gumbel_rows(seed: int, purpose: str, positions: Tensor, size: int) -> Tensor:
    """Gumbel noise of token ids 0 .. size−1 at several positions: int64 [R] -> float64 [R, size].

    Row i equals `gumbel(seed, purpose, positions[i], ids)`. Nothing is copied to the host.
    """
    keys = finalise((positions + 1) * signed(GOLDEN) + launch_key(seed, purpose))
    ids = torch.arange(1, size + 1, device=positions.device) * signed(GOLDEN)
    return gumbel_of(ids + keys[:, None])


def shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def finalise(value: Tensor) -> Tensor:
    """`mix` of int64 with the bits of uint64."""
    value = (value ^ shift(value, 30)) * signed(FIRST)
    value = (value ^ shift(value, 27)) * signed(SECOND)
    return value ^ shift(value, 31)


def gumbel_of(counters: Tensor) -> Tensor:
    """Gumbel noise of int64 counters, key + (index + 1) * GOLDEN."""
    return -torch.log(-torch.log((shift(finalise(counters), 12).to(torch.float64) + 0.5) * 2.0**-52))
