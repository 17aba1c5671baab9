"""A small random Llama pair, strong enough weights that attention matters, and what a store holds, read by hand."""

import copy

import pytest
import torch
import transformers as tf

import workbench as wb
from workbench.models.adapter import wrap

SIZES = dict(
    vocab_size=11, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=512, bos_token_id=None, eos_token_id=None,
    pad_token_id=None,
)  # fmt: skip
PROMPT = [(7 * i * i + 3 * i + 1) % 11 for i in range(50)]
DRAFT = "small-draft"
TERMS = 2 * (3 * 32 + 150 + 64 + 48) + 64  # of sums from a token to a logit: products, attention over a text, norms


def strong(model: tf.PreTrainedModel, seed: int = 3) -> tf.PreTrainedModel:
    """Random weights wide enough that the distribution is far from uniform and follows the context."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 2.5 / parameter.shape[-1] ** 0.5)
    return model.eval()


def build(window: int | None = None, **more):
    """A random Llama, or with `window` a Mistral whose layers slide."""
    if window:
        return strong(tf.MistralForCausalLM(tf.MistralConfig(**{**SIZES, **more}, sliding_window=window)))
    return strong(tf.LlamaForCausalLM(tf.LlamaConfig(**{**SIZES, **more})))


@pytest.fixture(scope="session")
def small():
    """The target in fp32; its draft, the target with noise in its weights, is registered as "small-draft"."""
    model = build()
    draft = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter += 0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    wb.register_model(DRAFT, draft)
    return wrap(model)


@pytest.fixture(scope="session")
def wide(small):
    """The target in fp64, its draft too: where a numeric tie vanishes and a bug does not."""
    return wrap(copy.deepcopy(small.model).double())


@pytest.fixture(scope="session")
def sliding():
    """A Mistral with a window of 24 tokens."""
    return wrap(build(window=24))


def live_positions(store, layer: int) -> list[list[int]]:
    """Positions that a managed store holds in a layer, by KV head, increasing."""
    state, heads = store._layers[layer], store._run.k[layer].shape[0]
    run = state.positions(store.held, store.length, store._run.k[layer].device).expand(heads, -1)
    found = run.tolist()
    if state.page_table is not None:
        where, live = state.page_table.places()
        found = [sorted(w[m].tolist()) + row for w, m, row in zip(where, live, found, strict=True)]
    return found


def page_rows(page_table) -> list[torch.Tensor]:
    """Copies of the pages of a table, head by head."""
    return [page.row.clone() for row in page_table.pages for page in row]


def contents(store) -> list[torch.Tensor]:
    """Everything a managed store has committed, layer by layer."""
    out = []
    for layer, state in enumerate(store._layers):
        out += [x[layer][:, : store.held].clone() for x in (store._run.k, store._run.v)]
        out += [tensor.clone() for tensor in (state.kept, state.mass) if tensor is not None]
        if state.page_table is not None:
            out += [*page_rows(state.page_table), state.page_table.count.clone()]
    return out


def feed(lm, store, tokens: list[int]) -> torch.Tensor:
    """Logits of tokens fed and committed, cut where the store wants it."""
    rows = []
    while tokens:
        at = store.length
        count = min(len(tokens), store.rows_left(at) if hasattr(store, "rows_left") else len(tokens))
        rows.append(lm.forward(tokens[:count], range(at, at + count), store).logits)
        store.commit(range(count))
        tokens = tokens[count:]
    return torch.cat(rows)
