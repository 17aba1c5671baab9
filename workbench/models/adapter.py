"""Any `transformers` causal language model as a `LanguageModel`: the one module that touches transformers' internals.

No modelling code is forked. A shallow copy of the model (its own module tree and config, the same weights) gets an
attention function of ours; the `Cache` handed to it stages new keys and values in our store and returns a handle in
their place, which the attention function receives. So the user's model is never changed, and every architecture that
routes its attention through transformers' attention interface is served as it is: rotary variants, partial rotary,
NoPE layers and learned positions stay the model's own business. What does not route through it is refused by `probe`,
which compares a short chunked pass with the stock model when a model is wrapped.

Tested on the oldest and the newest supported release (see `tests/engine/test_adapter.py`).
"""

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from workbench.cache.protocol import CacheStore
from workbench.engine.attention import (
    attend,
    attend_dressed,
    attend_in_place,
    attend_shared,
    column_mass,
    in_place,
    join,
)  # fmt: skip
from workbench.engine.bundle import Bundle
from workbench.engine.costs import costs_of
from workbench.engine.model import ForwardRequest, LanguageModel, Output, facts, kept
from workbench.engine.structure import final_norm, layers_of, picture, routed, tail_of
from workbench.errors import BadInput, Unsupported
from workbench.models.checkpoint import Entry
from workbench.models.digest import Digest
from workbench.models.fast import FastBody
from workbench.models.native import NativeBody
from workbench.models.probing import compare, context_of, eos_ids, probe, refuse_unserved

IMPLEMENTATION = "workbench"
_UNSERVED = {
    "softcap": "soft-capped attention scores",
    "s_aux": "attention sinks",
    "position_bias": "position biases in attention",
}


class _Handle(CacheLayerMixin):
    """One layer of the cache, as transformers sees it: stages keys and values in the store, reports lengths, and stands
    for keys and values both between `Cache.update` and the attention function."""

    is_sliding = False

    def __init__(self, cache: "_Cache", layer: int):
        super().__init__()
        self.cache, self.layer = cache, layer
        self.window: int | None = None  # sliding window the layer last asked for
        self.scale = 1.0  # of the scores, likewise
        self.widths = (0, 0, 0)  # KV heads, width of their keys, width of their values

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        self.is_initialized = True

    def update(self, key_states, value_states, *args: Any, **kwargs: Any):
        self.cache.store.stage(self.layer, key_states[0], value_states[0])
        self.widths = (key_states.shape[1], key_states.shape[-1], value_states.shape[-1])
        return self, self

    def get_seq_length(self, *args: Any) -> int:
        return self.cache.store.length + self.cache.store.behind

    def get_mask_sizes(self, query_length: int, *args: Any) -> tuple[int, int]:
        rows = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() + rows, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length


class _Cache(Cache):
    """The cache object a model's forward passes are given; `store` is that of the moment."""

    def __init__(self, layers: int):
        super().__init__(layers=[_Handle(self, layer) for layer in range(layers)])
        self.store: CacheStore | None = None


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None, **kwargs):
    """transformers' attention interface: query [1, H, R, D] -> ([1, R, H, D], no weights)."""
    if not isinstance(key, _Handle):
        raise Unsupported(f"{type(module).__name__} does not take its keys from the cache")
    for name, meaning in _UNSERVED.items():
        if kwargs.get(name) is not None:
            raise Unsupported(f"{type(module).__name__} uses {meaning} ({name}), which the engine does not serve")
    key.window, key.scale = sliding_window, query.shape[-1] ** -0.5 if scaling is None else scaling
    return _read(key.cache.store, key.layer, query, key.scale, sliding_window).transpose(1, 2).contiguous(), None


def _read(store: CacheStore, layer: int, query: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
    return (_attend_all if isinstance(store, Bundle) else _attend)(store, layer, query, scale, window)


def _attend_all(store: Bundle, layer: int, query: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
    """What the rows of several sequences read, each in its own store; trunks once for all that share them."""
    parts: list[torch.Tensor | None] = [None] * len(store.stores)
    shared = []
    for i, (one, rows) in enumerate(zip(store.stores, store.rows, strict=True)):
        segments = one.segments(layer, window) if one.trunk else ()
        if segments and all(segment.plain for segment in segments[:-1]):
            shared.append((i, rows, segments))
        else:
            parts[i] = _attend(one, layer, query[:, :, rows], scale, window)
    if shared:
        numbers, *given = zip(*shared, strict=True)
        out = attend_shared(query, list(zip(*given, strict=True)), scale)
        for i, part in zip(numbers, out.split([rows.stop - rows.start for rows in given[0]], 2), strict=True):
            parts[i] = part
    return torch.cat(parts, 2)


def _attend(store: CacheStore, layer: int, query: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
    """What rows [1, H, R, D] of one sequence read in its store: [1, H, R, Dv]."""
    segments = store.segments(layer, window, query)
    if store.trunk and all(segment.plain for segment in segments[:-1]):
        return attend_shared(query, [(slice(None), segments)], scale)
    if any(segment.dress for segment in segments):
        return attend_dressed(query, segments, scale)
    if in_place(query, segments):
        out, mass = attend_in_place(query, segments, scale, store.watched)
        store.implementation = "triton"
    else:
        segments = [join(query, segments)]
        mass = column_mass(query, segments, scale, store.watched) if store.watched else None
        out = attend(query, segments, scale)
    if mass is not None:
        store.add_mass(layer, mass)
    return out


AttentionInterface.register(IMPLEMENTATION, _attention)


class TransformersModel(LanguageModel):
    """A `transformers` causal LM behind the `LanguageModel` protocol; `model` and `tokenizer` are the user's own.

    All that is remembered about the model is made in `_adopt`, and made anew by `refresh` where the model was changed.
    files: the tensors it was loaded from, by name; None for a model made in memory.
    """

    gives = frozenset({"hidden", "exit", "states", "layers", "mass", "queries"})
    bodies: tuple[type[FastBody], ...] = (NativeBody, FastBody)  # that may run in the model's place, the fastest first

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any = None,
        name: str | None = None,
        key: tuple | None = None,
        files: dict[str, Entry] | None = None,
    ):
        refuse_unserved(model)
        self.model, self.tokenizer = model, tokenizer
        self.name = name or model.config.get_text_config().name_or_path or type(model).__name__
        self.key = key or ("object", id(model))
        self._digest = Digest(model, files)
        self._changing = threading.Lock()
        self._adopt()

    def refresh(self) -> None:
        """Look whether the model was changed since (modules, their settings and hooks, tensors, dtype, device, config,
        numbers), and if so forget all that was made of it. Raises Unsupported where it can no longer be served. Whoever
        begins a run calls this."""
        with self._changing:
            if picture(self.model) != self._picture:
                refuse_unserved(self.model)
                self._adopt()
            elif self._digest.look(self.model):
                self._parts.clear()  # the copy has the new numbers; what was computed from the old ones goes
                self._find_body()

    def _adopt(self) -> None:
        model, config = self.model, self.model.config.get_text_config()
        self._parts: dict[tuple, Any] = {}  # see `kept`
        self._picture = None
        seen = picture(model)
        self.context, self.device, self.dtype = context_of(config), model.device, model.dtype
        self.layers: int = config.num_hidden_layers
        self.parameters = sum(p.numel() for p in model.parameters())
        self.weight_bytes = sum(p.nbytes for p in model.parameters())
        self._engine = routed(model, IMPLEMENTATION)
        self._lock = threading.Lock()
        self._cache = _Cache(self.layers)
        _ = self.eos_ids  # that they are ids
        self._fast: FastBody | None = None
        probe(self)
        self._find_body()
        self.costs = costs_of(model, [handle.widths for handle in self._cache.layers])
        self.kv_heads, keys, values = self._cache.layers[0].widths
        self.head_dim: int = keys
        self._picture = seen

    def _find_body(self) -> None:
        """Settle which body runs: the fastest that gives the model's own logits."""
        self._fast, handles = None, self._cache.layers
        if self.device.type != "cpu" or self.dtype != torch.float32:
            self.body = ("stock", "the fast body is for float32 on a CPU")
            return
        given, reasons = (self._engine, [h.scale for h in handles], [h.window for h in handles], _read), []
        for kind in self.bodies:
            try:
                fast = kind(*given)
                compare(self, fast)
            except Unsupported as error:
                reasons.append(str(error))
            except Exception as error:  # whatever it is, the model itself serves
                reasons.append(f"{type(error).__name__}: {error}".splitlines()[0])
            else:
                self._fast, self.body = fast, ("fast", f"not compiled: {reasons[0]}" if reasons else None)
                return
        self.body = ("stock", f"no fast body: {reasons[-1] if reasons else 'asked for'}")

    @property
    def vocab_size(self) -> int:
        """Ids the model gives logits for: the rows of its output matrix."""
        return self.model.get_output_embeddings().weight.shape[0]

    @property
    def ids_read(self) -> int:
        """Ids the model can be given: the rows of its input embeddings."""
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def eos_ids(self) -> frozenset[int]:
        """End-of-text ids, as the model's configs have them now."""
        return eos_ids(self.model)

    def rotary_frequencies(self) -> torch.Tensor | None:
        rotary = getattr(self._engine.base_model, "rotary_emb", None)
        found = getattr(rotary, "inv_freq", None)
        return None if "dynamic" in (kind := getattr(rotary, "rope_type", "")) or kind == "longrope" else found

    def _forward(self, request: ForwardRequest) -> Output:
        """Raises Unsupported where layers, "exit" or a number is asked of a model whose decoder layers are not one
        list."""
        layers, cache = request.layers, request.cache
        if layers is not None and (not len(layers) or not all(0 <= layer < self.layers for layer in layers)):
            raise BadInput(f"layers: expected numbers in [0, {self.layers}), got {list(layers)}")
        if "hidden" in request.want and self._fast is None:
            self._tail()  # found before anything is staged
        if (fast := self._fast) is not None:
            return self._by(fast, request)
        with self._lock:
            self._cache.store = cache
            cache.begin(request.positions, request.mask, layers, request.ids)
            try:
                if layers is None and not set(request.want) - {"hidden"}:
                    return self._run(request)
                with self._only(request) as states:
                    out = self._run(request)
                out.exit = states.pop("exit", None)
                out.states = states
                return out
            finally:
                cache.end()
                self._cache.store = None

    @staticmethod
    def _by(fast: FastBody, request: ForwardRequest) -> Output:
        request.cache.begin(request.positions, request.mask, request.layers, request.ids)
        try:
            return fast.forward(request)
        finally:
            request.cache.end()

    def forward_many(self, requests: Sequence[ForwardRequest]) -> list[Output]:
        bundle = Bundle(requests)
        return bundle.split(self._forward(bundle.request()))

    @property
    def bundles(self) -> bool:
        """Whether rows of different sequences may share a forward: rotary angles must not follow its length, and no
        module may mix rows. Tried on the model."""
        return kept(self, ("bundles",), self._try_bundle)

    @torch.inference_mode()
    def _try_bundle(self) -> bool:
        for kinds in (getattr(module, "rope_type", None) for module in self._engine.modules()):
            if {"dynamic", "longrope"} & set(kinds.values() if isinstance(kinds, dict) else [kinds]):
                return False

        def behind(count: int) -> ForwardRequest:
            """Two rows behind some committed ones."""
            ids, store = [(7 * i + 3) % self.ids_read for i in range(count + 2)], self.new_store()
            self._forward(ForwardRequest(ids[:count], range(count), store, logits_at=()))
            store.commit(range(count))
            return ForwardRequest(ids[count:], range(count, count + 2), store)

        alone, bundled = ([behind(count) for count in (1, 6)] for _ in "12")
        bundle = Bundle(bundled)
        pairs = zip(map(self._forward, alone), bundle.split(self._forward(bundle.request())), strict=True)
        within = 1e-3 if self.dtype in (torch.float32, torch.float64) else 5e-2
        return all((x.logits - y.logits).abs().max() <= within * x.logits.abs().max() for x, y in pairs)

    def _run(self, request: ForwardRequest) -> Output:
        rows, places = (
            torch.as_tensor(given, device=self.device)[None] for given in (request.tokens, request.positions)
        )
        inputs = {"inputs_embeds" if request.embedded else "input_ids": rows, "position_ids": places}
        inputs |= {"past_key_values": self._cache, "use_cache": True}
        if "hidden" in request.want:
            states = self._engine.base_model(**inputs).last_hidden_state[0]
            return Output(self.head(request.chosen(states)), states)
        keep = {"all": 0, "last": 1}[request.logits_at] if isinstance(request.logits_at, str) else None
        if keep is None:
            keep = torch.as_tensor(list(request.logits_at), dtype=torch.long, device=self.device)
        return Output(self._engine(**inputs, logits_to_keep=keep).logits[0])

    @contextmanager
    def _only(self, request: ForwardRequest) -> Iterator[dict[Any, torch.Tensor]]:
        """While open, the engine's own module tree holds just the request's decoder layers (the user's model keeps all)
        and the first of them, where it is not layer 0, reads the states given, not what the model made of its input
        embeddings; the table gets what is wanted of the layers, [R, width] under "exit" and numbers."""
        owner, name = layers_of(self._engine, self.layers)
        whole, order = getattr(owner, name), list(range(self.layers) if request.layers is None else request.layers)
        run = torch.nn.ModuleList([whole[layer] for layer in order])
        given = [request.tokens[None]] if request.embedded and order[0] > 0 else []
        watched = {n: run[order.index(n - 1)] for n in request.want if isinstance(n, int) and n - 1 in order}
        watched |= {"exit": run[-1]} if "exit" in request.want else {}
        hooks, found = [], {}

        def replace(module, args, kwargs):
            if not given:  # a hook that an interrupt has left behind
                return None
            if "hidden_states" in kwargs:
                return args, kwargs | {"hidden_states": given[0]}
            return (given[0], *args[1:]), kwargs

        def catch(key, module, args, output):
            found[key] = (output if isinstance(output, torch.Tensor) else output[0])[0]

        try:  # opened first: an interrupt may fall anywhere
            setattr(owner, name, run)
            if given:
                hooks.append(run[0].register_forward_pre_hook(replace, with_kwargs=True))
            for key, layer in watched.items():
                hooks.append(layer.register_forward_hook(partial(catch, key)))
            yield found
        finally:
            given.clear()
            setattr(owner, name, whole)
            for hook in hooks:
                hook.remove()

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        """[R] ids -> [R, width] input embeddings."""
        return self._engine.get_input_embeddings()(torch.as_tensor(tokens, device=self.device))

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, width] final hidden states -> [R, V] logits, as the model itself makes them: scaled and capped."""
        return self.logits(hidden) if (fast := self._fast) is None else fast.head(hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same for states [..., width], outside of inference mode: gradients pass to the states."""
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        return self._tail()(inputs_embeds=rows, use_cache=False).logits.reshape(*hidden.shape[:-1], self.vocab_size)

    def _tail(self) -> torch.nn.Module:
        return kept(self, ("tail",), lambda: tail_of(self.model, self.layers))

    @torch.inference_mode()
    def exit_logits(self, states: torch.Tensor) -> torch.Tensor:
        """[R, width] the residual stream behind any layer -> [R, V] what the model's own norm and head make of it."""
        return self.head(self.final_norm(states))

    @property
    def final_norm(self) -> torch.nn.Module:
        """The model's norm between its last layer and its head. Raises Unsupported where something else, or more, lies
        between them."""
        return kept(self, ("norm",), self._find_norm)

    @torch.inference_mode()
    def _find_norm(self) -> torch.nn.Module:
        norm = final_norm(self.model, self.layers)
        ids = [(7 * i + 3) % self.ids_read for i in range(6)]
        out = self.forward(ids, range(6), self.new_store(), logits_at=(), want=("exit", "hidden"))
        normed = norm(out.exit)
        if normed.shape != out.hidden.shape or not torch.allclose(normed, out.hidden, rtol=1e-2, atol=1e-3):
            raise Unsupported(f"early exit: {type(self.model).__name__} has more than a norm between layers and head")
        return norm

    def check_layers(self) -> None:
        layers_of(self.model, self.layers)

    def forward_flops(self, rows: int, context: int) -> int:
        """Multiply-adds counted twice, from shapes: the weight matrices a row meets, and attention to the context."""
        return self.costs.flops(rows, context)

    def weights_read(self, rows: int) -> int:
        return self.costs.weight_bytes(rows)

    def kv_bytes(self) -> int:
        return self.costs.kv_bytes(self.dtype.itemsize)

    def describe(self) -> dict:
        """The facts about the model that a trace records."""
        shapes = {n: (*p.shape, str(p.dtype)) for n, p in self.model.named_parameters()}
        found = facts(self, type(self.model).__name__, shapes, self._digest.of(self.model))
        told = (getattr(self.model.config, name, None) for name in ("gguf_quantization", "weights_rounded"))
        return found | {"quantization": ", ".join(filter(None, told)) or None}

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"LanguageModel({self.name!r}, {self.parameters / 1e6:.1f} M parameters, {dtype}, {self.device})"


_wrapped: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def wrap(model: PreTrainedModel, tokenizer: Any = None) -> TransformersModel:
    """The `LanguageModel` of a model that is already in memory, as it is now; made once per model and tokenizer while
    it is in use. Without a tokenizer it is the one made last."""
    key = (id(model), None if tokenizer is None else id(tokenizer))
    lm = _wrapped.get(key)
    if lm is not None:
        lm.refresh()
        return lm
    lm = TransformersModel(model, tokenizer)
    _wrapped[key] = _wrapped[id(model), None] = lm
    return lm
