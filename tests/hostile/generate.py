"""`custom_generate` is `generate`: any options give the greedy text of stock decoding, or are refused by name."""

import functools
import warnings
from typing import Any

import torch
import transformers
from hypothesis import strategies as st

import workbench as wb

__all__ = ["CORPORA"]

tokens = st.integers(3, 31)
OPTIONS = {
    "min_length": st.integers(0, 14),
    "min_new_tokens": st.integers(0, 6),
    "max_new_tokens": st.integers(1, 8),
    "forced_eos_token_id": st.sampled_from([2, 9]),
    "forced_bos_token_id": tokens,
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 4), st.floats(0.5, 4)),
    "repetition_penalty": st.floats(0.3, 3),
    "encoder_repetition_penalty": st.floats(0.3, 3),
    "no_repeat_ngram_size": st.integers(0, 3),
    "encoder_no_repeat_ngram_size": st.integers(0, 3),
    "bad_words_ids": st.lists(st.lists(tokens, min_size=1, max_size=2), min_size=1, max_size=3),
    "sequence_bias": st.lists(
        st.tuples(st.lists(tokens, min_size=1, max_size=2), st.floats(-9, 9)).map(list), min_size=1
    ),
    "suppress_tokens": st.lists(tokens, min_size=1, max_size=3),
    "begin_suppress_tokens": st.lists(tokens, min_size=1, max_size=3),
    "prefix_allowed_tokens_fn": st.integers(1, 9).map(
        lambda step: lambda row, ids: [2 + (row * step + len(ids) + int(ids[-1])) % 30, 2 + (3 * row) % 30]
    ),
    "renormalize_logits": st.booleans(),
    "remove_invalid_values": st.booleans(),
    "eos_token_id": st.sampled_from([2, [2, 5], [3, 4, 5, 6, 7, 8]]),
    "top_k": st.integers(0, 9),
    "temperature": st.floats(0, 2),
    "num_beams": st.integers(1, 2),
    "use_cache": st.booleans(),
    "guidance_scale": st.sampled_from([1.0, 1.5]),
    "max_length": st.integers(1, 20),
    "output_scores": st.booleans(),
}
rows = st.lists(st.lists(tokens, min_size=1, max_size=9), min_size=1, max_size=3)
some = st.lists(st.sampled_from(list(OPTIONS)), min_size=1, max_size=3, unique=True)
calls = st.tuples(
    rows, some.flatmap(lambda names: st.fixed_dictionaries({name: OPTIONS[name] for name in names})), st.booleans()
)


@functools.cache
def model():
    transformers.logging.set_verbosity_error()
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=48, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config).eval().double()
    noise = torch.Generator().manual_seed(0)
    for weight in made.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.4, generator=noise)
    return made


def with_options(call: tuple[list[list[int]], dict[str, Any], bool]) -> None:
    """Equal to stock decoding token for token; what stock itself refuses is no case."""
    batch, options, drafted = call
    width = max(map(len, batch))
    given = {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in batch]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch]),
        "do_sample": False,
        **({} if "max_length" in options else {"max_new_tokens": 6}),
        **options,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            stock = model().generate(**given)
        except (ValueError, TypeError, IndexError, RuntimeError):
            return
        plugin = wb.custom_generate(wb.Speculative(drafter=wb.CopySpec(ngram=1)) if drafted else None, level="off")
        found = model().generate(**given, custom_generate=plugin)
    assert torch.equal(found, stock), f"{found.tolist()} instead of {stock.tolist()}"


CORPORA = {"options": (calls, with_options)}
