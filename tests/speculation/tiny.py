"""A random Llama of a few words and layers, and trained parts for it."""

from pathlib import Path

import torch

import workbench as wb
from workbench.models.adapter import TransformersModel, wrap
from workbench.training.data import make_text
from workbench.training.fit import Recipe, fit
from workbench.training.parts import PARTS

__all__ = ["TERMS", "tiny_heads", "tiny_target"]

TERMS = 5 * (
    3 * 32 + 96 + 32 + 32
)  # of sums from a token to a distribution: five layers at most, their products and attention


def tiny_target(
    name: str = "tiny", seed: int = 3, vocabulary: int = 5, context: int = 96, width: int = 16, layers: int = 2
) -> TransformersModel:
    """Registered under its name; its distributions are far from uniform, and far from certain."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return wb.register_model(name, wrap(LlamaForCausalLM(config).eval()))


def tiny_heads(target: TransformersModel, kind: str, folder: Path, steps: int = 10) -> str:
    """The folder that holds a part trained for a few steps: what a drafter's `weights` takes."""
    text = make_text(target, tokens=16 * 48, window=48, start=8, held_out=4)
    fit(kind, PARTS[kind], target, text, folder, recipe=Recipe(steps * 256, 256, warmup=2, autocast=False), quiet=True)
    return str(folder)
