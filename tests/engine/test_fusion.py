"""Swaps on the engine's copy: the same logits, the user's model and the modelling file untouched."""

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from tests.rounding import close
from workbench.device.fusion import fuse_norms, fuse_rotary
from workbench.engine.structure import shallow_copy

SIZES = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
IDS = torch.arange(7)[None]


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.3)).eval()


def calls(found: list):
    """A stand-in for a compiler: counts the calls of what it was given."""

    def compiled(function):
        def wrapped(*args, **options):
            found.append(function)
            return function(*args, **options)

        return wrapped

    return compiled


@torch.inference_mode()
def test_a_fused_copy_gives_the_same_logits(llama):
    want = llama(IDS).logits
    engine, found = shallow_copy(llama), []
    assert fuse_norms(engine) == 5 and fuse_rotary(engine, calls(found)) == 2
    found.clear()
    assert close(engine(IDS).logits, want, terms=2 * (4 * 32 + 48 + 7) + 64)  # the sums of two layers and the head
    assert found == [modeling_llama.apply_rotary_pos_emb] * 2  # once a layer
    found.clear()
    assert torch.equal(llama(IDS).logits, want) and not found  # the user's model goes on as before


@torch.inference_mode()
def test_norms_of_another_kind_stay(llama):
    """Gemma's norm multiplies by 1 + weight: the trial shows it."""
    gemma = GemmaForCausalLM(GemmaConfig(**SIZES)).eval()
    for module in gemma.modules():
        if type(module).__name__ == "GemmaRMSNorm":
            module.weight.copy_(torch.linspace(0.5, 1, 32))
    assert fuse_norms(shallow_copy(gemma)) == 0


def test_a_compiler_that_fails_or_errs_changes_nothing(llama):
    def broken(function):
        raise RuntimeError("no compiler here")

    assert fuse_rotary(shallow_copy(llama), broken) == 0
    assert fuse_rotary(shallow_copy(llama), lambda function: lambda q, k, cos, sin: (q, k)) == 0


@pytest.mark.gpu
@torch.inference_mode()
def test_the_compiled_rotary_on_a_gpu(llama):
    from workbench.device.fusion import fuse

    model = llama.to("cuda", torch.bfloat16)
    want = model(IDS.cuda()).logits.float()
    engine = shallow_copy(model)
    fuse(engine)
    assert any("forward" in vars(module) for module in engine.modules() if hasattr(module, "head_dim"))
    assert (engine(IDS.cuda()).logits.float() - want).abs().max() <= 0.03 * want.abs().max()  # bfloat16 roundings
