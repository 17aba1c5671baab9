"""A model's forward pass without its modules: the same products and norms as plain calls, from the same tensors.

Most decoder layers have one form: norm, q/k/v with or without bias and norms of their own, rotary positions, attention
over groups of heads, norm, gated or plain MLP; some norm again before they add. A small model spends most of a token's
time between such calls, not in them. `FastBody` reads the form off the modules and serves whatever a `ForwardRequest`
asks, bundles included; nothing is copied. What has another form is refused with a reason, and runs as it is.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from workbench.cache.protocol import CacheStore
from workbench.engine.model import ForwardRequest, Output
from workbench.engine.structure import final_norm, layers_of
from workbench.errors import BadInput, Unsupported

Attend = Callable[[CacheStore, int, torch.Tensor, float, int | None], torch.Tensor]
CHILDREN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
            "post_feedforward_layernorm"}  # fmt: skip
OWN = ("transformers.", "torch.")


class FastBody:
    """model: on a CPU, in evaluation mode. scales, windows: of the attention in each layer. attend: query [1, H, R, D]
    in a store -> [1, H, R, Dv]. Raises Unsupported for a model of another form."""

    def __init__(
        self,
        model: nn.Module,
        scales: Sequence[float],
        windows: Sequence[int | None],
        attend: Attend,
    ):
        _refuse_foreign(model)
        owner, name = layers_of(model, len(scales))
        rotary = getattr(owner, "rotary_emb", None)
        try:
            each = zip(getattr(owner, name), scales, windows, strict=True)
            self._layers = [Layer(number, *facts) for number, facts in enumerate(each)]
            self._angles = {kind: _angles(rotary, kind) for kind in {layer.kind for layer in self._layers}}
        except AttributeError as error:
            raise Unsupported(f"layers of another form ({error})") from error
        self._embed = model.get_input_embeddings()
        self._norm, self._head = Norm.of(final_norm(model, len(scales))), Linear.of(model.get_output_embeddings())
        self._attend = attend

    def parts(self) -> tuple[Sequence["Layer"], Callable[[torch.Tensor], torch.Tensor]]:
        """The layers and the head of one forward."""
        return self._layers, self._head

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final hidden states [..., width] -> logits [..., V]."""
        return self.parts()[1](hidden)

    def forward(self, request: ForwardRequest) -> Output:
        """The rows of a request whose forward is open in its store. Raises BadInput for states of another width or
        dtype."""
        store, want, (layers, head) = request.cache, request.want, self.parts()
        places = torch.as_tensor(request.positions)
        turns = {kind: angles and _turn(places, *angles) for kind, angles in self._angles.items()}
        x = request.tokens if request.embedded else self._embed(torch.as_tensor(request.tokens))
        if x.shape[1:] != self._norm.weight.shape or x.dtype != self._norm.weight.dtype:
            raise BadInput(f"forward: expected states [rows, {len(self._norm.weight)}] in float32, got"
                           f" {list(x.shape)} in {str(x.dtype).removeprefix('torch.')}")  # fmt: skip
        states = {}
        for number in range(len(layers)) if request.layers is None else request.layers:
            layer = layers[number]
            x = layer(x, turns[layer.kind], store, self._attend)
            if number + 1 in want:
                states[number + 1] = x
        hidden = self._norm(x)
        only_hidden = not set(want) - {"hidden"}
        return Output(
            head(request.chosen(hidden)),
            hidden if "hidden" in want else None,
            x if "exit" in want else None,
            None if only_hidden and request.layers is None else states,
        )


class Layer:
    """One decoder layer: [R, width] -> [R, width]."""

    def __init__(self, number: int, module: nn.Module, scale: float, window: int | None):
        children = {name for name, child in module.named_children() if not isinstance(child, nn.Dropout)}
        if children - CHILDREN:
            raise Unsupported(f"layers with {', '.join(sorted(children - CHILDREN))}")
        self.number, self.scale, self.window = number, scale, window
        attention, sandwich = module.self_attn, hasattr(module, "post_feedforward_layernorm")
        self.kind, self.width = _kind(attention), attention.head_dim
        self.before = Norm.of(module.input_layernorm) if hasattr(module, "input_layernorm") else _same
        after, between = module.post_attention_layernorm, getattr(module, "pre_feedforward_layernorm", None)
        self.after = Norm.of(after) if sandwich else _same
        self.between = Norm.of(between or after) if between or not sandwich else _same
        self.last = Norm.of(module.post_feedforward_layernorm) if sandwich else _same
        if hasattr(attention, "qkv_proj"):
            heads, groups = attention.config.num_attention_heads, attention.config.num_key_value_heads
            sizes = [count * self.width for count in (heads, groups, groups)]
            self.q, self.k, self.v = Linear.of(attention.qkv_proj).split(sizes)
        else:
            self.q, self.k, self.v = map(Linear.of, (attention.q_proj, attention.k_proj, attention.v_proj))
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        self.queries, self.keys = (_same if norm is None else Norm.of(norm) for norm in norms)
        self.wide = norms[0] is not None and norms[0].weight.numel() != self.width  # over all heads, not over each
        self.out, self.gate = Linear.of(attention.o_proj), None
        if hasattr(mlp := module.mlp, "c_fc"):
            self.up, self.act, self.down = Linear.of(mlp.c_fc), mlp.act, Linear.of(mlp.c_proj)
        elif hasattr(mlp, "gate_up_proj"):
            self.gate, self.up = Linear.of(mlp.gate_up_proj).split([mlp.gate_up_proj.out_features // 2] * 2)
            self.act, self.down = mlp.activation_fn, Linear.of(mlp.down_proj)
        else:
            self.gate, self.up, self.down = map(Linear.of, (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
            self.act = mlp.act_fn

    def __call__(self, x: torch.Tensor, turn: Any, store: CacheStore, attend: Attend) -> torch.Tensor:
        y, rows = self.before(x), x.shape[0]
        q, k, v = self.q(y), self.k(y), self.v(y)
        if self.wide:
            q, k = self.queries(q), self.keys(k)
        q, k = q.view(rows, -1, self.width), k.view(rows, -1, self.width)
        v = v.view(rows, k.shape[1], -1)
        if not self.wide:
            q, k = self.queries(q), self.keys(k)
        if turn is not None:
            q, k = _turned(q, *turn), _turned(k, *turn)
        store.stage(self.number, k.transpose(0, 1), v.transpose(0, 1))
        x = x + self.after(self.out(self.read(q, store, attend)))
        y = self.between(x)
        y = self.act(self.up(y)) if self.gate is None else self.act(self.gate(y)) * self.up(y)
        return x + self.last(self.down(y))

    def read(self, q: torch.Tensor, store: CacheStore, attend: Attend) -> torch.Tensor:
        """What queries [R, H, D] read behind what was staged: [R, H * Dv]."""
        read = attend(store, self.number, q.transpose(0, 1)[None], self.scale, self.window)
        return read[0].transpose(0, 1).reshape(q.shape[0], -1)


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _refuse_foreign(model: nn.Module) -> None:
    """What a short trial may not show: code of others, hooks, methods put on an object."""
    for module in model.modules():
        if not type(module).__module__.startswith(OWN):
            raise Unsupported(f"{type(module).__name__} is not of transformers")
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            raise Unsupported(f"{type(module).__name__} has hooks")


class Linear(NamedTuple):
    """x [R, inputs] -> [R, outputs]."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, *self)

    @classmethod
    def of(cls, module: nn.Module) -> "Linear":
        if type(module) is not nn.Linear:
            raise Unsupported(f"{type(module).__name__} in place of Linear")
        return cls(module.weight, module.bias)

    def split(self, sizes: Sequence[int]) -> list["Linear"]:
        """Several that lie one below the other."""
        biases = [None] * len(sizes) if self.bias is None else self.bias.split(sizes)
        return list(map(Linear, self.weight.split(sizes), biases))


class Norm(NamedTuple):
    """A LayerNorm, or an RMSNorm whose weight is what it says or `plus` it."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float
    centred: bool = False
    plus: bool = False

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        shape = self.weight.shape
        if self.centred:
            return F.layer_norm(x, shape, self.weight, self.bias, self.eps)
        if self.plus:
            return F.rms_norm(x, shape, None, self.eps) * (1 + self.weight)
        return F.rms_norm(x, shape, self.weight, self.eps)

    @classmethod
    @torch.inference_mode()
    def of(cls, module: nn.Module) -> "Norm":
        """What gives the module's own result, whatever its weights, but for a rounding. Raises Unsupported where
        nothing here does."""
        tried = copy.deepcopy(module)
        weight, bias = getattr(tried, "weight", None), getattr(tried, "bias", None)
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if weight is not None and eps is not None:
            for number, part in enumerate(filter(torch.is_tensor, (weight, bias))):
                part.copy_(torch.linspace(0.5 - number, 1.5, part.numel()))
            trial = torch.linspace(-3, 3, 2 * weight.numel(), device=weight.device).to(weight.dtype).view(2, -1)
            wanted, few = tried(trial), 4 * torch.finfo(weight.dtype).eps
            for kind in ({"centred": True}, {}, {"plus": True}):
                if torch.allclose(cls(weight, bias, eps, **kind)(trial), wanted, rtol=few, atol=few):
                    return cls(module.weight, getattr(module, "bias", None), eps, **kind)
        raise Unsupported(f"{type(module).__name__} is neither LayerNorm nor RMSNorm")


# -- rotary positions ---------------------------------------------------------------------------------------------


def _kind(attention: nn.Module) -> str | None:
    """Which of the model's rotary angles a layer takes; None for none."""
    return getattr(attention, "layer_type", "") or "" if getattr(attention, "use_rope", True) else None


def _angles(rotary: Any, kind: str | None) -> tuple[torch.Tensor, float] | None:
    """Radians per token [D / 2], and what cosine and sine are scaled by."""
    if kind is None:
        return None
    prefix = f"{kind}_" if hasattr(rotary, f"{kind}_inv_freq") else ""
    types = getattr(rotary, "rope_type", "")
    if {"dynamic", "longrope"} & set(types.values() if isinstance(types, dict) else [types]):
        raise Unsupported("rotary angles that follow the length")
    return getattr(rotary, f"{prefix}inv_freq"), getattr(rotary, f"{prefix}attention_scaling")


def _turn(places: torch.Tensor, frequencies: torch.Tensor, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """[R] positions -> [R, 1, D] cosines and sines; the first half of the sines is negative, for a roll by half."""
    angles = places[:, None, None].float() * frequencies.float()
    cos, sin = angles.cos() * scaling, angles.sin() * scaling
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[R, heads, D] with the first of the D turned, as many as there are angles."""
    turned = cos.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat([_turned(x[..., :turned], cos, sin), x[..., turned:]], -1)
    return x * cos + x.roll(turned // 2, -1) * sin
