"""What a `transformers` model is made of, found without a list of architectures: its decoder layers, its final norm,
the way from its hidden states to its logits, and whether any of this was changed since.
"""

import copy
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from workbench.errors import Unsupported

NORMS = ("norm", "final_layer_norm", "ln_f", "final_layernorm")


def shallow_copy(model: nn.Module) -> nn.Module:
    """The same modules and config anew, with the very same parameter and buffer tensors, in evaluation mode."""
    memo: dict[int, Any] = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo).eval()


def routed(model: nn.Module, implementation: str) -> nn.Module:
    """A shallow copy whose attention goes to a registered implementation, in layers of other models as well."""
    engine = shallow_copy(model)
    engine.set_attn_implementation(implementation)
    for module in engine.modules():
        if hasattr(config := getattr(module, "config", None), "_attn_implementation"):
            config._attn_implementation = implementation
    return engine


# -- layers and norm ----------------------------------------------------------------------------------------------


def layers_of(model: nn.Module, count: int) -> tuple[nn.Module, str]:
    """The module that holds the decoder layers in one list, and the name of that list. Raises Unsupported where there
    is none, or several of this length."""
    found: dict[str, tuple[nn.Module, str]] = {}
    base = model.base_model
    for path, module in base.named_modules():
        listed = isinstance(module, nn.ModuleList) and len(module) == count
        if listed and not any(path.startswith(f"{outer}.") for outer in found):
            owner, _, name = path.rpartition(".")
            found[path] = (base.get_submodule(owner), name)
    if len(found) != 1:
        raise Unsupported(f"layers: {type(model).__name__} does not keep its decoder layers in one list")
    return next(iter(found.values()))


def final_norm(model: nn.Module, count: int) -> nn.Module:
    """The norm between the last layer and the head. Raises Unsupported where the model shows none."""
    owner, _ = layers_of(model, count)
    for name in NORMS:
        if isinstance(found := getattr(owner, name, None), nn.Module):
            return found
    raise Unsupported(f"early exit: {type(model).__name__} has no final norm by any of the names {', '.join(NORMS)}")


# -- from hidden states to logits ---------------------------------------------------------------------------------


class _Given(nn.Module):
    """Stands for everything before the head: its input embeddings are what it gives back as the last hidden state."""

    def forward(self, *args: Any, inputs_embeds: torch.Tensor, **kwargs: Any) -> Any:
        return _Out(last_hidden_state=inputs_embeds)


class _Out(SimpleNamespace):
    """An output that has one entry and says None to all else."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.last_hidden_state,)[index]


@torch.no_grad()
def tail_of(model: nn.Module, count: int) -> nn.Module:
    """A module that takes final hidden states [B, R, width] as `inputs_embeds` and returns an output with the model's
    `logits`: the model itself, all before the head left out, so that whatever it does with its logits is done.

    Raises Unsupported where the model's own logits cannot be had from its final hidden states.
    """
    ids = torch.tensor([[(7 * i + 3) % model.get_input_embeddings().weight.shape[0] for i in range(6)]])
    whole = shallow_copy(model)
    ids = ids.to(model.device)
    wanted = whole(ids, use_cache=False).logits.flip(1)  # in another order: rows must not know of each other
    hidden = whole.base_model(ids, use_cache=False).last_hidden_state.flip(1)
    for path in filter(None, _before_the_head(whole, count)):
        tail = shallow_copy(model)
        owner, _, name = path.rpartition(".")
        setattr(tail.get_submodule(owner), name, _Given())
        try:
            found = tail(inputs_embeds=hidden, use_cache=False).logits
        except Exception:  # this is not where the head begins
            continue
        atol = 1e-3 * wanted.abs().nan_to_num().amax().item()
        if found.shape == wanted.shape and torch.allclose(found, wanted, rtol=0, atol=atol, equal_nan=True):
            return tail
    raise Unsupported(
        f"{type(model).__name__} makes its logits of more than its last hidden state; what reads or drafts from hidden"
        " states is not served"
    )


def _before_the_head(model: nn.Module, count: int) -> list[str]:
    """Paths of the modules whose output the head may read."""
    with suppress(Unsupported):
        read = {id(model.base_model), id(layers_of(model, count)[0])}
        return [path for path, module in model.named_modules() if id(module) in read]
    return [path for path, module in model.named_modules() if module is model.base_model]


# -- changes ------------------------------------------------------------------------------------------------------


_APART = {*vars(nn.Module()), "_is_hf_initialized", "config", "generation_config"}


def picture(model: nn.Module) -> tuple:
    """What of a model a copy would miss if it were changed: its modules with their settings and hooks, its tensors (by
    identity, dtype, device and shape; not their numbers, which a copy shares), its config and end tokens."""
    parts: list[Any] = [_mark(vars(model.config.get_text_config())), _mark(vars(model.config))]
    for path, module in model.named_modules():
        facts = vars(module).items()
        settings = tuple((name, _mark(v)) for name, v in facts if name not in _APART and v is not None)
        hooks = (*module._forward_pre_hooks, *module._forward_hooks)
        tensors = tuple(
            (name, *_same(tensor), tensor.dtype, tensor.device, tensor.shape)
            for table in (module._parameters, module._buffers)
            for name, tensor in table.items()
            if tensor is not None
        )
        parts.append((path, type(module), settings, hooks, tensors))
    return tuple(parts)


def _mark(value: Any, depth: int = 4) -> Any:
    """A value that can be compared later, whatever becomes of this one."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return value
    if depth and isinstance(value, dict):
        return tuple((key, _mark(entry, depth - 1)) for key, entry in value.items())
    if depth and isinstance(value, list | tuple):
        return tuple(_mark(entry, depth - 1) for entry in value)
    if depth and isinstance(value, set | frozenset):
        return frozenset(map(str, value))
    return _same(value)


def _same(it: Any) -> tuple[int, Any]:
    """Equal to the pair of this very object alone, whatever its own comparison says: tuples compare identities first.
    Holds the object, so that no other one gets its identity."""
    return id(it), it
