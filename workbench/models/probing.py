"""Which models the engine serves: told from class and config, then tried out; and what their configs say."""

from collections.abc import Callable, Iterator
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import PreTrainedModel

from workbench.engine.model import ForwardRequest, Output
from workbench.engine.structure import shallow_copy
from workbench.errors import BadInput, Unsupported

if TYPE_CHECKING:
    from workbench.models.adapter import TransformersModel
    from workbench.models.fast import FastBody

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}  # of logits, relative to the largest


def context_of(config: Any) -> int:
    """Positions a model serves. Where the rotary factors change at a length (longrope), that length: beyond it the
    distribution would depend on how many tokens a forward holds."""
    told = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")]
    longest = next((int(value) for value in told if value is not None), 2**20)
    if longest < 2:
        raise BadInput(f"the model's config says a context of {longest} tokens; expected at least 2")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        original = rope.get("original_max_position_embeddings")
        longest = min(longest, int(original or getattr(config, "original_max_position_embeddings", None) or longest))
    return longest


def eos_ids(model: PreTrainedModel) -> frozenset[int]:
    """End-of-text ids of the model's generation config, else of its config. Raises BadInput where they are none."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if found is None:
        found = getattr(model.config.get_text_config(), "eos_token_id", None)
    found = () if found is None else found
    try:
        return frozenset(map(index, [found] if isinstance(found, int) else list(found)))
    except TypeError:
        raise BadInput(f"the model's end-of-text ids: expected integers, got {found!r}") from None


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
def probe(lm: "TransformersModel") -> None:
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
        if "_Handle" in str(error):
            raise Unsupported(
                f"{what} computes with the keys that its cache returns, as multi-head latent attention (MLA) does; the"
                " engine serves models that hand them to the attention function as they are"
            ) from error
        raise Unsupported(f"{what} cannot be served: {type(error).__name__}: {error}".splitlines()[0]) from error
    config = lm.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or (["sliding_attention"] if window else []) * lm.layers
    for handle, kind in zip(lm._cache.layers, kinds, strict=False):
        # a layer that slides by its mask alone: so short a text cannot show it, and we make the masks
        if kind == "sliding_attention" and handle.window is None and (window or 0) < lm.context:
            raise Unsupported(f"{what} does not pass its sliding window to the attention function; it is not served")
    if not torch.isfinite(stock).all():
        return  # broken weights are named when a run meets them
    worst = _apart(torch.cat([first, second]), stock)
    if worst > TOLERANCE.get(lm.dtype, 5e-2):
        raise Unsupported(
            f"{what} gives other logits through the engine (relative error {worst:.1e}); it is not served"
        )


@torch.inference_mode()
def compare(lm: "TransformersModel", fast: "FastBody") -> None:
    """Raise Unsupported where a fast body gives other logits than the model itself: of a long chunk, of a tree far
    behind it, and of hidden states small and large."""
    ids = [(7 * i + 3) % lm.ids_read for i in range(24)]
    tree = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], dtype=torch.bool)
    far = max(lm.context - 3, 24)

    def outputs(run: Callable[[ForwardRequest], Output]) -> Iterator[torch.Tensor]:
        store = lm.new_store()
        yield run(ForwardRequest(ids, range(24), store)).logits
        store.commit(range(24))
        yield run(ForwardRequest(ids[:4], [far, far + 1, far + 1, far + 2], store, tree)).logits

    stock, wide = list(outputs(lm._forward)), lm.embed(ids[:4])
    found = list(outputs(partial(lm._by, fast)))
    for size in (1, 100):
        stock.append(lm.logits(size * wide))
        found.append(fast.head(size * wide))
    worst = max(map(_apart, found, stock))
    if not worst <= TOLERANCE[lm.dtype]:
        raise Unsupported(f"it gives other logits (relative error {worst:.1e})")


def _apart(ours: torch.Tensor, stock: torch.Tensor) -> float:
    return ((ours - stock).abs().max() / stock.abs().max().clamp_min(1e-6)).item()
