"""Any `transformers` causal language model as a `LanguageModel`: the one module that touches transformers' internals.

No modelling code is forked. A shallow copy of the model (its own module tree and config, the same weights) gets an
attention function of ours; the `Cache` handed to it stages new keys and values in our store and returns a handle in
their place, which the attention function receives. So the user's model is never changed, and every architecture that
routes its attention through transformers' attention interface is served as it is: rotary variants, partial rotary,
NoPE layers and learned positions stay the model's own business. What does not route through it is refused by `probe`,
which compares a short chunked pass with the stock model when a model is wrapped.

Tested on the oldest and the newest supported release (see `tests/engine/test_adapter.py`).
"""

import copy
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformers
from transformers import AttentionInterface, Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from workbench.cache.store import CacheStore, PlainStore
from workbench.engine.attention import attend, attend_in_place, column_mass, in_place, join
from workbench.engine.model import Output, facts
from workbench.errors import BadInput, Unsupported

__all__ = ["TransformersModel", "wrap"]

IMPLEMENTATION = "workbench"
_UNSERVED = {
    "softcap": "soft-capped attention scores",
    "s_aux": "attention sinks",
    "position_bias": "position biases in attention",
}


class _Handle:
    """Stands for the keys and values of one layer between `Cache.update` and the attention function."""

    __slots__ = ("cache", "layer", "window")

    def __init__(self, cache: "_Cache", layer: int):
        self.cache, self.layer = cache, layer
        self.window: int | None = None  # sliding window the layer last asked for


class _Layer(CacheLayerMixin):
    """One layer's face towards transformers: it only reports lengths."""

    is_sliding = False

    def __init__(self, cache: "_Cache"):
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        self.is_initialized = True

    def update(self, key_states, value_states, *args: Any, **kwargs: Any):
        raise RuntimeError("keys are staged by _Cache.update")

    def get_seq_length(self, *args: Any) -> int:
        return self.cache.store.length + self.cache.store.behind

    def get_mask_sizes(self, query_length: int, *args: Any) -> tuple[int, int]:
        rows = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() + rows, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length


class _Cache(Cache):
    """The cache object a model's forward passes are given: stages into the store of the moment, returns handles."""

    def __init__(self, layers: int):
        super().__init__(layers=[_Layer(self) for _ in range(layers)])
        self.store: CacheStore | None = None
        self.handles = [_Handle(self, layer) for layer in range(layers)]

    def update(self, key_states, value_states, layer_idx: int, *args: Any, **kwargs: Any):
        self.store.stage(layer_idx, key_states[0], value_states[0])
        handle = self.handles[layer_idx]
        return handle, handle


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None, **kwargs):
    """transformers' attention interface: query [1, H, R, D] -> ([1, R, H, D], no weights)."""
    if not isinstance(key, _Handle):
        raise Unsupported(f"{type(module).__name__} does not take its keys from the cache")
    for name, meaning in _UNSERVED.items():
        if kwargs.get(name) is not None:
            raise Unsupported(f"{type(module).__name__} uses {meaning} ({name}), which the engine does not serve")
    key.window = sliding_window
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    store = key.cache.store
    segments = store.segments(key.layer, sliding_window)
    if in_place(query, segments):
        out, mass = attend_in_place(query, segments, scale, store.watched)
        store.implementation = "triton"
    else:
        segments = [join(query, segments)]
        mass = column_mass(query, segments, scale, store.watched) if store.watched else None
        out = attend(query, segments, scale)
    if mass is not None:
        store.observe(key.layer, mass)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(IMPLEMENTATION, _attention)


class TransformersModel:
    """A `transformers` causal LM behind the `LanguageModel` protocol; `model` and `tokenizer` are the user's own."""

    gives_mass = True  # tells a store what its watched rows look at

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any = None, name: str | None = None, key: tuple | None = None
    ):
        refuse_unserved(model)
        config = model.config.get_text_config()
        self.model, self.tokenizer = model, tokenizer
        self.name = name or config.name_or_path or type(model).__name__
        self.key = key or ("object", id(model))
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        self.context = context_of(config)
        self.layers: int = config.num_hidden_layers
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.eos_ids = eos_ids(model)
        tensors = {id(p): p for p in model.parameters()}
        self.parameters = sum(p.numel() for p in tensors.values())
        self.weight_bytes = sum(p.nbytes for p in tensors.values())
        heads = config.num_attention_heads
        self.kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        self.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        self._heads = heads
        self._engine = shallow_copy(model)
        self._engine.set_attn_implementation(IMPLEMENTATION)
        self._lock = threading.Lock()
        self._cache = _Cache(self.layers)
        probe(self)

    def new_store(self) -> PlainStore:
        return PlainStore(self.layers)

    def rotary_frequencies(self) -> torch.Tensor | None:
        """[d] radians per token of the rotary embedding; None where there is none, or it changes with the length."""
        rotary = getattr(self._engine.base_model, "rotary_emb", None)
        found = getattr(rotary, "inv_freq", None)
        return None if "dynamic" in (kind := getattr(rotary, "rope_type", "")) or kind == "longrope" else found

    @torch.inference_mode()
    def forward(
        self,
        tokens: Sequence[int] | torch.Tensor,
        positions: Sequence[int],
        cache: CacheStore,
        mask: torch.Tensor | None = None,
        layers: Sequence[int] | None = None,
        logits_at: str | Sequence[int] = "all",
        want: Sequence[str | int] = (),
    ) -> Output:
        """See `LanguageModel`. `want`: "hidden" adds the final hidden states of all rows, "exit" what the last layer
        that ran gave to the norm, which may be fed to the layer that follows; a number l what the first l layers gave
        on, where layer l − 1 runs.

        Raises Unsupported where `layers`, "exit" or a number is asked of a model whose decoder layers are not one list.
        """
        if layers is not None and (not len(layers) or not all(0 <= layer < self.layers for layer in layers)):
            raise BadInput(f"layers: expected numbers in [0, {self.layers}), got {list(layers)}")
        inputs: dict[str, Any] = {}
        if isinstance(tokens, torch.Tensor) and tokens.is_floating_point():
            inputs["inputs_embeds"] = tokens[None]
        else:
            inputs["input_ids"] = torch.as_tensor(tokens, device=self.device)[None]
        places = torch.as_tensor(positions, device=self.device)[None]
        inputs |= {"position_ids": places, "past_key_values": self._cache, "use_cache": True}
        with self._lock:
            self._cache.store = cache
            cache.begin(positions, mask, layers)
            try:
                numbers = [entry for entry in want if isinstance(entry, int)]
                if layers is None and "exit" not in want and not numbers:
                    return self._run(inputs, logits_at, want)
                order = list(range(self.layers) if layers is None else layers)
                with self._only(order) as run:
                    resumed = "inputs_embeds" in inputs and order[0] > 0
                    behind = {n: run[order.index(n - 1)] for n in numbers if n - 1 in order}
                    behind |= {"exit": run[-1]} if "exit" in want else {}
                    with _replaced(run[0], tokens if resumed else None), _caught(behind) as states:
                        out = self._run(inputs, logits_at, want)
                    out.exit = states.pop("exit", None)
                    out.states = states
                    return out
            finally:
                cache.end()
                self._cache.store = None

    def _run(self, inputs: dict[str, Any], logits_at: str | Sequence[int], want: Sequence[str | int]) -> Output:
        if "hidden" in want:
            states = self._engine.base_model(**inputs).last_hidden_state[0]
            rows = states if logits_at == "all" else states[-1:] if logits_at == "last" else states[list(logits_at)]
            return Output(self.head(rows), states)
        keep: Any = {"all": 0, "last": 1}.get(logits_at) if isinstance(logits_at, str) else None
        if keep is None:
            keep = torch.as_tensor(list(logits_at), dtype=torch.long, device=self.device)
        return Output(self._engine(**inputs, logits_to_keep=keep).logits[0])

    @contextmanager
    def _only(self, layers: Sequence[int]) -> Iterator[torch.nn.ModuleList]:
        """While open, the engine's own module tree holds just these decoder layers; the user's model keeps all."""
        base = self._engine.base_model
        lists = {n: m for n, m in base.named_children() if isinstance(m, torch.nn.ModuleList) and len(m) == self.layers}
        if len(lists) != 1:
            raise Unsupported(f"layers: {type(self.model).__name__} does not keep its decoder layers in one list")
        ((name, whole),) = lists.items()
        chosen = torch.nn.ModuleList([whole[layer] for layer in layers])
        try:  # opened first: an interrupt may fall anywhere
            setattr(base, name, chosen)
            yield chosen
        finally:
            setattr(base, name, whole)

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        """[R] ids -> [R, width] input embeddings."""
        return self._engine.get_input_embeddings()(torch.as_tensor(tokens, device=self.device))

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, width] final hidden states -> [R, V] logits."""
        return self._engine.get_output_embeddings()(hidden)

    def forward_flops(self, rows: int, context: int) -> int:
        """Multiply-adds counted twice, from shapes: all weight matrices once per row, and attention to the context."""
        attention = 4 * self.layers * self._heads * self.head_dim * context
        return rows * (2 * self.parameters + attention)

    def kv_bytes(self) -> int:
        """Bytes of one token's keys and values over all layers, in the model's dtype."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    def describe(self) -> dict:
        """The facts about the model that a trace records."""
        shapes = {n: (*p.shape, str(p.dtype)) for n, p in self.model.named_parameters()}
        return facts(self, type(self.model).__name__, shapes)

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"LanguageModel({self.name!r}, {self.parameters / 1e6:.1f} M parameters, {dtype}, {self.device})"


@contextmanager
def _replaced(layer: torch.nn.Module, states: torch.Tensor | None) -> Iterator[None]:
    """While open, a decoder layer reads these states [R, width], not what the model made of its input embeddings."""

    given = [] if states is None else [states[None]]

    def replace(module, args, kwargs):
        if not given:  # a hook that an interrupt has left behind
            return None
        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": given[0]}
        return (given[0], *args[1:]), kwargs

    hook = None
    try:
        if given:
            hook = layer.register_forward_pre_hook(replace, with_kwargs=True)
        yield
    finally:
        given.clear()
        if hook is not None:
            hook.remove()


@contextmanager
def _caught(layers: dict[Any, torch.nn.Module]) -> Iterator[dict[Any, torch.Tensor]]:
    """While open, the table gets what decoder layers give on, [R, width] under each one's key."""
    found: dict[Any, torch.Tensor] = {}

    def catch(key, module, args, output):
        found[key] = (output if isinstance(output, torch.Tensor) else output[0])[0]

    hooks: list = []
    try:
        for key, layer in layers.items():
            hooks.append(layer.register_forward_hook(partial(catch, key)))
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def shallow_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The same modules and config anew, with the very same parameter and buffer tensors, in evaluation mode."""
    memo: dict[int, Any] = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo).eval()


def context_of(config: Any) -> int:
    """Positions a model serves. Where the rotary factors change at a length (longrope), that length: beyond it the
    law would depend on how many tokens a forward holds."""
    longest = int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0) or 2**20)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        original = rope.get("original_max_position_embeddings")
        longest = min(longest, int(original or getattr(config, "original_max_position_embeddings", None) or longest))
    return longest


def eos_ids(model: PreTrainedModel) -> frozenset[int]:
    """End-of-text ids of the model's generation config, else of its config."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if found is None:
        found = getattr(model.config.get_text_config(), "eos_token_id", None)
    return frozenset() if found is None else frozenset([found] if isinstance(found, int) else found)


def refuse_unserved(model: Any) -> None:
    """Raise Unsupported, in one line, for what can be told from the class and its config."""
    what = f"{type(model).__name__} (transformers {transformers.__version__})"
    if not isinstance(model, PreTrainedModel):
        raise BadInput(f"expected a transformers model, got {type(model).__name__}; load one with workbench.load(name)")
    config = model.config.get_text_config()
    if getattr(model.config, "is_encoder_decoder", False):
        raise Unsupported(f"{what} is an encoder-decoder; the engine serves decoder-only causal language models")
    if model.get_output_embeddings() is None:
        raise Unsupported(f"{what} has no language-model head; load it with AutoModelForCausalLM")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    foreign = kinds - {"full_attention", "sliding_attention"}
    if foreign:
        raise Unsupported(
            f"{what} has layers of kind {', '.join(sorted(foreign))}; the engine serves attention layers only"
        )
    if not getattr(model, "_supports_attention_backend", False):
        raise Unsupported(f"{what} does not route attention through transformers' attention interface")


@torch.inference_mode()
def probe(lm: TransformersModel) -> None:
    """Compare six tokens, fed as a chunk and a branching tree, with the stock model; Unsupported where they differ."""
    what = f"{type(lm.model).__name__} (transformers {transformers.__version__})"
    ids = [(7 * i + 3) % lm.vocab_size for i in range(6)]
    try:
        stock = shallow_copy(lm.model)(torch.tensor([ids], device=lm.device), use_cache=False).logits[0].float()
        cache = lm.new_store()
        first = lm.forward(ids[:3], range(3), cache).logits.float()
        cache.commit(range(3))
        tree = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], dtype=torch.bool)
        rows = [ids[3], ids[0], ids[4], ids[5]]
        second = lm.forward(rows, [3, 4, 4, 5], cache, tree).logits.float()[[0, 2, 3]]
    except Unsupported:
        raise
    except Exception as error:
        raise Unsupported(f"{what} cannot be served: {type(error).__name__}: {error}".splitlines()[0]) from error
    refuse_hidden_windows(lm, what)
    if not torch.isfinite(stock).all():
        return  # broken weights are named when a run meets them
    ours = torch.cat([first, second])
    scale = stock.abs().max().clamp_min(1e-6)
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-4}.get(lm.dtype, 5e-2)
    worst = ((ours - stock).abs().max() / scale).item()
    if worst > tolerance:
        raise Unsupported(
            f"{what} gives other logits through the engine (relative error {worst:.1e}); it is not served"
        )


def refuse_hidden_windows(lm: TransformersModel, what: str) -> None:
    """Raise Unsupported where a layer slides by its mask alone: a short probe cannot show it, and we make the masks."""
    config = lm.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or (["sliding_attention"] if window else []) * lm.layers
    for handle, kind in zip(lm._cache.handles, kinds, strict=False):
        if kind == "sliding_attention" and handle.window is None and (window or 0) < lm.context:
            raise Unsupported(f"{what} does not pass its sliding window to the attention function; it is not served")


_wrapped: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def wrap(model: PreTrainedModel, tokenizer: Any = None) -> TransformersModel:
    """The `LanguageModel` of a model that is already in memory; made once per model object while it is in use."""
    lm = _wrapped.get(id(model))
    if lm is None or (tokenizer is not None and lm.tokenizer is None):
        lm = TransformersModel(model, tokenizer)
        _wrapped[id(model)] = lm
    return lm
