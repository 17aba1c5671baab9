"""Stands in for a CPU that is not here: every product of matrices in float32 is rounded another way.

    pytest -p tests.another_cpu tests/cache          (ANOTHER_CPU_SEED=1 ANOTHER_CPU_ULPS=2 by default)

The error added to an entry is normal and `ulps` epsilons wide, relative to the root mean square of its row. It is a
function of the shapes alone: one shape is always rounded one way, as by a library, while one row and three rows of the
same product differ. What is computed in float64 stays as it is.
"""

import functools
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F

__all__ = ["another_cpu", "install"]

PRODUCTS = (  # attention's own goes by its identity in torch, and ends in a linear layer
    (F, "linear"),
    (torch, "addmm"),
    (torch, "matmul"),
    (torch.Tensor, "__matmul__"),
)
EPS = torch.finfo(torch.float32).eps


@functools.lru_cache(4096)
def errors(shape: tuple[int, ...], key: str, ulps: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{shape} {key}".encode()))
    return torch.randn(shape, generator=generator) * (ulps * EPS)


def rounded(function: Callable, seed: int, ulps: float) -> Callable:
    """The function, its float32 results with errors."""

    @functools.wraps(function)
    def product(*args, **options):
        out = function(*args, **options)
        if out.dtype != torch.float32 or out.device.type != "cpu" or not out.numel():
            return out
        with torch.no_grad():
            size = out.square().mean(-1, keepdim=True).sqrt_()
            error = errors(tuple(out.shape), f"{function.__name__} {tuple(args[1].shape)} {seed}", ulps).mul(size)
        return out + error

    return product


@contextmanager
def another_cpu(seed: int = 1, ulps: float = 2) -> Iterator[None]:
    """Within it, products are rounded as by CPU number `seed`; a sum of 10^3 products is off by about 2 epsilons."""
    with ExitStack() as stack:
        for place, name in PRODUCTS:
            stack.enter_context(mock.patch.object(place, name, rounded(getattr(place, name), seed, ulps)))
        yield


def install() -> None:
    """For the rest of this process, as the environment says."""
    seed, ulps = int(os.environ.get("ANOTHER_CPU_SEED", "1")), float(os.environ.get("ANOTHER_CPU_ULPS", "2"))
    for place, name in PRODUCTS:
        setattr(place, name, rounded(getattr(place, name), seed, ulps))


def pytest_configure(config) -> None:
    install()
