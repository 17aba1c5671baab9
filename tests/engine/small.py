"""Small random models of any architecture, a tokenizer of words, and folders that hold both."""

from pathlib import Path

import torch
import transformers as tf

__all__ = ["PROMPT", "folder_of", "random_model", "stock", "words"]

SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
PROMPT = [5, 9, 12, 7, 5, 9, 12, 33, 41, 5, 9]


def random_model(name: str = "Llama", seed: int = 0, config: str = "", **sizes) -> tf.PreTrainedModel:
    """`<name>ForCausalLM`, its distribution far from uniform; config: the class of its config, where that is named
    otherwise."""
    options = getattr(tf, config or f"{name}Config")(**{**SIZES, **sizes})
    model = getattr(tf, f"{name}ForCausalLM")(options).eval()
    noise = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.3, generator=noise)
    return model


def words(count: int) -> tf.PreTrainedTokenizerFast:
    """A tokenizer that knows the words w0, w1, …"""
    from tokenizers import Tokenizer, models, pre_tokenizers

    told = Tokenizer(models.WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0"))
    told.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(tokenizer_object=told, unk_token="w0")


def folder_of(path: Path, model: tf.PreTrainedModel, tokens: int = 64) -> Path:
    """A checkpoint with its tokenizer."""
    model.save_pretrained(path)
    words(tokens).save_pretrained(path)
    return path


def stock(model: tf.PreTrainedModel, prompt: list[int], count: int = 10) -> list[int]:
    """What `generate` goes on with, greedily."""
    ids = torch.tensor([prompt], device=model.device)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return out[0, len(prompt) :].tolist()
