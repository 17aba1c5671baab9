"""Fewer launches for the same numbers: what a decode round's small kernels cost on a GPU is their number.

Both swaps are made on the engine's own copy of a model, and only where a trial gives the stock result.
"""

import types
from collections.abc import Callable
from contextlib import suppress

import torch

from workbench.errors import Unsupported
from workbench.models.fast import Norm

ROTARY = "apply_rotary_pos_emb"


def fuse(engine: torch.nn.Module) -> dict[str, int]:
    """Swap what can be swapped in a model on a GPU; returns in how many modules, by what."""
    return {"norms": fuse_norms(engine), "rotary": fuse_rotary(engine, torch.compile)}


@torch.inference_mode()
def fuse_norms(engine: torch.nn.Module) -> int:
    """RMS norms written out step by step become torch's fused one, which rounds once; returns how many did."""
    swapped = 0
    for module in engine.modules():
        if type(module).__name__.endswith("RMSNorm"):
            with suppress(Unsupported):
                norm = Norm.of(module)
                if not norm.plus:  # which would round twice
                    module.forward = norm
                    swapped += 1
    return swapped


@torch.inference_mode()
def fuse_rotary(engine: torch.nn.Module, compiled: Callable[[Callable], Callable]) -> int:
    """`apply_rotary_pos_emb`, ten small kernels a layer, through `compiled`; returns in how many modules.

    The function is a global of the modelling file, which is left as it is: modules get a copy of their forward method
    whose globals name the compiled function. Where compiling or running it fails nothing is swapped.
    """
    swapped, made = 0, {}
    for module in engine.modules():
        forward = type(module).forward
        code = getattr(forward, "__code__", None)
        if code is None or ROTARY not in code.co_names or not hasattr(module, "head_dim"):
            continue
        stock = forward.__globals__[ROTARY]
        if stock not in made:
            made[stock] = _rotary_that_agrees(stock, compiled, module)
        if made[stock] is None:
            continue
        names = {**forward.__globals__, ROTARY: made[stock]}
        copy = types.FunctionType(code, names, forward.__name__, forward.__defaults__, forward.__closure__)
        copy.__kwdefaults__ = forward.__kwdefaults__
        module.forward = types.MethodType(copy, module)
        swapped += 1
    return swapped


def _rotary_that_agrees(stock: Callable, compiled: Callable, module: torch.nn.Module) -> Callable | None:
    weight = next(module.parameters())
    shape = (1, 2, 3, module.head_dim)
    q = torch.linspace(-2, 2, 6 * module.head_dim, device=weight.device).to(weight.dtype).view(shape)
    cos, sin = q[:, 0].cos(), q[:, 0].sin()
    try:
        fast = compiled(stock)
        found, want = fast(q, q.flip(1), cos, sin), stock(q, q.flip(1), cos, sin)
    except Exception:  # whatever a compiler may raise: the stock function serves
        return None
    return fast if all(_agree(*pair) for pair in zip(found, want, strict=True)) else None


def _agree(found: torch.Tensor, want: torch.Tensor) -> bool:
    """Equal but for one rounding of their dtype."""
    return bool(torch.allclose(found, want, rtol=4 * torch.finfo(want.dtype).eps, atol=4 * torch.finfo(want.dtype).eps))
