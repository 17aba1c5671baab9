"""Which architectures of transformers are served: tiny random models of each, decoded and compared with `generate`.

`python -m tests.engine.served` prints the table of README.md, with `--write` puts it there.
"""

import argparse
import functools
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as tf

import workbench as wb
from tests.engine.test_adapter import SIZES, gpt2, gpt_neox, llama, phi3, smollm3

README = Path(__file__).parents[2] / "README.md"
MARKS = "<!-- served -->", "<!-- /served -->"
PROMPT, TOKENS = [(37 * i + 11) % 97 for i in range(12)], 4
ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}


def of(name: str, drop: tuple[str, ...] = (), **more) -> Callable[[], tf.PreTrainedModel]:
    """The causal language model of a name in transformers, at our sizes but for `drop`, and with `more`."""

    def make() -> tf.PreTrainedModel:
        sizes = {key: value for key, value in SIZES.items() if key not in drop}
        config = getattr(tf, f"{name}TextConfig", None) if name in ("Gemma3", "Llama4") else None
        config = config or getattr(tf, f"{name}Config")
        return getattr(tf, f"{name}ForCausalLM")(config(**{**sizes, **more}))

    return make


def old(name: str, model: str = "ForCausalLM", **more) -> Callable[[], tf.PreTrainedModel]:
    """The same for those that name their sizes in ways of their own."""
    ends = {"vocab_size": 97, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return lambda: getattr(tf, name + model)(getattr(tf, f"{name}Config")(**ends, **more))


GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
ARCHITECTURES: dict[str, Callable[[], tf.PreTrainedModel]] = {
    "BLOOM": old("Bloom", hidden_size=32, n_layer=3, n_head=4),
    "CodeGen": old("CodeGen", **GPT, rotary_dim=4),
    "Cohere": of("Cohere"),
    "Cohere 2": of("Cohere2", sliding_window=8),
    "DeepSeek-V3": of("DeepseekV3", ("num_key_value_heads",), num_key_value_heads=4, n_routed_experts=4, n_group=1,
                      topk_group=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
                      v_head_dim=8, **EXPERTS),
    "EXAONE 4": of("Exaone4", sliding_window=8),
    "Falcon": old("Falcon", hidden_size=32, num_hidden_layers=3, num_attention_heads=4),
    "Gemma": of("Gemma", head_dim=8),
    "Gemma 2": of("Gemma2", head_dim=8),
    "Gemma 2 without soft-capped attention": of("Gemma2", head_dim=8, sliding_window=8, attn_logit_softcapping=None),
    "Gemma 3 (text)": of("Gemma3", head_dim=8, sliding_window=8),
    "GLM-4": of("Glm4", head_dim=8),
    "GPT-2": gpt2,
    "GPT-BigCode": old("GPTBigCode", **GPT),
    "GPT-J": old("GPTJ", **GPT, rotary_dim=4),
    "GPT-Neo": old("GPTNeo", hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=256,
                   attention_types=[[["global", "local"], 1]]),
    "GPT-NeoX": gpt_neox,
    "gpt-oss": of("GptOss", head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    "Granite": of("Granite", attention_multiplier=0.3, residual_multiplier=0.5, logits_scaling=2.0),
    "Llama": llama,
    "Llama 4 (text)": of("Llama4", head_dim=8, num_local_experts=2, intermediate_size_mlp=48),
    "Mamba": old("Mamba", hidden_size=32, num_hidden_layers=2, state_size=4),
    "Mistral": of("Mistral", sliding_window=8),
    "Mixtral": of("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "MPT": old("Mpt", d_model=32, n_layers=3, n_heads=4, max_seq_len=256),
    "Nemotron": of("Nemotron"),
    "OLMo 2": of("Olmo2"),
    "OLMo 3": of("Olmo3", sliding_window=8),
    "OPT": old("OPT", hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=48,
               max_position_embeddings=256, word_embed_proj_dim=32),
    "Persimmon": of("Persimmon"),
    "Phi": of("Phi", rope_parameters=ROPE),
    "Phi-3": phi3,
    "Qwen2": of("Qwen2"),
    "Qwen3": of("Qwen3", head_dim=16),
    "Qwen3 MoE": of("Qwen3Moe", head_dim=16, num_experts=4, **EXPERTS),
    "SmolLM3": smollm3,
    "StableLM": of("StableLm", rope_parameters=ROPE),
    "StarCoder 2": of("Starcoder2", sliding_window=8),
}  # fmt: skip


@functools.cache
def outcome(name: str) -> str:
    """`served` where decoding, plain and with drafts, gives what `generate` gives; else `refused` and why."""
    torch.manual_seed(len(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ARCHITECTURES[name]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 2 / weight.shape[-1] ** 0.5)
    try:
        ours = [wb.decode(model, PROMPT, decoder, max_new_tokens=TOKENS) for decoder in DECODERS]
    except wb.Unsupported as error:
        return "refused: " + re.sub(r"^\w+ (\(transformers [^)]*\) )?", "", " ".join(str(error).split()))
    theirs = model.generate(torch.tensor([PROMPT]), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)[0].tolist()
    assert all(PROMPT + trace.token_ids == theirs for trace in ours), (name, [t.token_ids for t in ours], theirs)
    return "served"


DECODERS = (None, wb.Speculative(wb.CopySpec(ngram=1), wb.FixedLength(3)))


def table() -> str:
    rows = [f"| {name} | {outcome(name)} |" for name in ARCHITECTURES]
    return "\n".join(["| architecture | served, or refused and why |", "|---|---|", *rows])


def block(text: str) -> tuple[int, int]:
    """Where in a text the table stands, between its marks."""
    start, end = (text.index(mark) for mark in MARKS)
    return start + len(MARKS[0]), end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    made, text = table(), README.read_text(encoding="utf-8")
    if parser.parse_args().write:
        start, end = block(text)
        README.write_text(f"{text[:start]}\n{made}\n{text[end:]}", encoding="utf-8")
    print(made)


if __name__ == "__main__":
    main()
