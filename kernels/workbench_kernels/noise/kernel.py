"""The same random numbers inside Triton kernels; seed and purpose are hashed on the host (`reference.launch_key`).

Two float64 logarithms a token would cost more than all the rest. So `seeded_best` screens a tile in float32 first.
float64 is spent on the one token that can win, or on the whole tile where several come close. The token is that of
float64 everywhere.
"""

import triton
import triton.language as tl

from workbench_kernels.noise import reference

GOLDEN = tl.constexpr(reference.GOLDEN)
FIRST = tl.constexpr(reference.FIRST)
SECOND = tl.constexpr(reference.SECOND)
RARE = tl.constexpr(4096)  # of 2**32: uniforms this near 0 or 1 keep too few bits in the screen
MARGIN = tl.constexpr(1e-3)  # 100 times the screen's error in nats


@triton.jit
def mix(value):
    """SplitMix64's finaliser of uint64."""
    value = (value ^ (value >> 30)) * FIRST
    value = (value ^ (value >> 27)) * SECOND
    return value ^ (value >> 31)


@triton.jit
def position_key(key, position):
    """uint64 key of an absolute position, from the launch's key (int64)."""
    return mix(key.to(tl.uint64) + (position.to(tl.int64) + 1).to(tl.uint64) * GOLDEN)


@triton.jit
def bits(key, index):
    return mix(key + (index.to(tl.int64) + 1).to(tl.uint64) * GOLDEN)


@triton.jit
def uniform(key, index):
    """The `index`-th uniform of a position's key, float64 in (0, 1)."""
    return ((bits(key, index) >> 12).to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2**-52


@triton.jit
def gumbel(key, index):
    """Standard Gumbel noise, float64."""
    return -tl.log(-tl.log(uniform(key, index)))


@triton.jit
def seeded_best(z, kept, index, key):
    """The kept entry of a tile with the largest z + gumbel: (float64 value, int32 index); the lowest index wins a tie.

    z: floats, `index`: int32 token ids in rising order, both [BLOCK]. (-inf, 2**31 - 1) where nothing is kept.
    """
    best = tl.full((), float("-inf"), tl.float64)
    best_index = tl.full((), 2147483647, tl.int32)
    if tl.sum(kept.to(tl.int32), axis=0) > 0:
        high = (bits(key, index) >> 32).to(tl.uint32)
        rest = (4294967295 - high).to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # 1 - u
        # near u = 1 float32 has lost 1 - u, so -log(u) is its series there
        series = rest * (1.0 + rest * (0.5 + rest * (0.3333333333333333 + rest * 0.25)))
        surprise = tl.where(rest < 0.0625, series, -tl.log(tl.maximum(1.0 - rest, 1e-10)))
        guess = tl.where(kept, z.to(tl.float32) - tl.log(surprise), float("-inf"))
        top = tl.max(guess, axis=0)
        near = kept & (guess >= top - MARGIN - 1e-6 * tl.abs(top))
        rare = kept & ((high < RARE) | (high > 4294967295 - RARE))
        if (tl.sum(near.to(tl.int32), axis=0) == 1) & (tl.sum(rare.to(tl.int32), axis=0) == 0):
            best_index = tl.sum(tl.where(near, index, 0), axis=0)
            best = tl.sum(tl.where(near, z, 0.0), axis=0).to(tl.float64) + gumbel(key, best_index)
        else:
            exact = tl.where(kept, z.to(tl.float64) + gumbel(key, index), float("-inf"))
            best = tl.max(exact, axis=0)
            best_index = tl.min(tl.where(exact == best, index, 2147483647), axis=0)
    return best, best_index
