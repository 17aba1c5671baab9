"""One way from hidden states to logits: whatever a model does behind its head, everybody who reads states sees it."""

import pytest
import torch

import workbench as wb
from tests.engine.small import PROMPT, random_model
from workbench.models.adapter import wrap
from workbench.speculation.drafters.medusa import MedusaHeads
from workbench.speculation.heads import weights
from workbench.training.data import Batch

SCALED = {
    "divided": dict(name="Granite", logits_scaling=8.0),
    "multiplied": dict(name="Cohere", logit_scale=0.0625, use_qk_norm=False),
    "capped": dict(
        name="Gemma3", config="Gemma3TextConfig", head_dim=8, sliding_window=16, final_logit_softcapping=3.0
    ),
    "plain": dict(name="Llama"),
}
EXIT = wb.Kangaroo(weights=None, exits=(1, 2))


def states_of(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model.base_model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("case", SCALED)
def test_heads_exits_statistics_and_training_read_the_models_own_logits(case, tmp_path):
    """They took the bare head: Granite's distribution came out eight times as sharp, Gemma's without its cap."""
    lm = wrap(model := random_model(**SCALED[case]))
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT]), use_cache=False).logits[0]
    hidden = states_of(model, PROMPT)
    out = lm.forward(PROMPT, range(len(PROMPT)), lm.new_store(), want=("hidden", "exit"))
    for found in (out.logits, lm.head(hidden), lm.exit_logits(out.exit), Batch(lm, [PROMPT]).head(hidden[None])[0]):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    leaf = hidden.clone().requires_grad_()
    Batch(lm, [PROMPT]).head(leaf).sum().backward()
    assert leaf.grad.abs().sum() > 0
    # seeded drafts leave the text as it is, and every token's entropy with it
    heads = MedusaHeads(32, 2)
    weights.save(tmp_path / "medusa.safetensors", "medusa", heads, lm, {"width": 32, "heads": 2}, {})
    run = dict(max_new_tokens=10, temperature=1.0, seed=3, ignore_eos=True)
    plain = wb.decode(lm, PROMPT, **run)
    for drafter, shape in ((wb.Medusa(weights=str(tmp_path)), None), (EXIT, wb.Del())):
        trace = wb.decode(lm, PROMPT, wb.Speculative(drafter=drafter, shape=shape), **run)
        assert trace.token_ids == plain.token_ids and len(trace.drafts)
        pairs = zip(trace.tokens["entropy_raw_nats"], plain.tokens["entropy_raw_nats"], strict=True)
        assert max(abs(a - b) for a, b in pairs) < 1e-3


class Positional(type(random_model())):
    """Its logits depend on more than its last hidden state."""

    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        places = options.get("position_ids")
        places = torch.arange(out.logits.shape[1])[None] if places is None else places
        keep = options.get("logits_to_keep", 0)
        places = places[:, -keep:] if isinstance(keep, int) else places[:, keep]
        out.logits = out.logits * (1 + places[..., None])
        return out


def test_a_model_with_more_behind_its_states_is_refused_for_heads_alone(tmp_path):
    """It decodes; what reads hidden states is refused before any work."""
    model = random_model()
    model.__class__ = Positional
    lm = wrap(model)
    assert len(wb.decode(lm, PROMPT, max_new_tokens=3).token_ids) == 3
    for drafter in (EXIT, wb.Medusa(weights=str(tmp_path))):
        with pytest.raises(wb.Unsupported, match="more than its last hidden state"):
            wb.Session(lm, PROMPT, wb.Speculative(drafter=drafter))


# -- single layers ------------------------------------------------------------------------------------------------


def opt(**more):
    sizes = dict(ffn_dim=48, word_embed_proj_dim=32)
    return random_model("OPT", **{**sizes, **more})


@pytest.mark.parametrize("drafter", [wb.LayerSkip(), EXIT], ids=["layer-skip", "early-exit"])
def test_layers_one_module_deeper_are_found(drafter):
    """OPT keeps its layers and its norm in a decoder within its base model."""
    lm = wrap(opt())
    run = dict(max_new_tokens=8, temperature=1.0, seed=2, ignore_eos=True)
    trace = wb.decode(lm, PROMPT, wb.Speculative(drafter=drafter), **run)
    assert trace.token_ids == wb.decode(lm, PROMPT, **run).token_ids and len(trace.drafts)


def test_what_a_drafter_needs_of_single_layers_is_asked_before_any_work():
    """A projection behind the last layer is no norm; layers in two lists are no list: refused when a run begins."""
    projected = wrap(opt(word_embed_proj_dim=16, do_layer_norm_before=False))
    with pytest.raises(wb.Unsupported, match="early exit: OPTForCausalLM has no final norm"):
        wb.Session(projected, PROMPT, wb.Speculative(drafter=EXIT))
    assert len(wb.decode(projected, PROMPT, wb.Speculative(drafter=wb.LayerSkip()), max_new_tokens=4).token_ids) == 4
    model = random_model()
    model.model.others = torch.nn.ModuleList(torch.nn.Identity() for _ in range(3))
    for drafter in (wb.LayerSkip(), EXIT):
        with pytest.raises(wb.Unsupported, match="decoder layers in one list"):
            wb.Session(model, PROMPT, wb.Speculative(drafter=drafter))


def test_latent_attention_is_refused_with_a_reason():
    """It said that an object of ours has no attribute 'shape'."""
    sizes = dict(
        moe_intermediate_size=16, num_hidden_layers=2, num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, n_routed_experts=4, n_shared_experts=1,
        num_experts_per_tok=2, first_k_dense_replace=1, n_group=1, topk_group=1,
    )  # fmt: skip
    with pytest.raises(wb.Unsupported, match="DeepseekV3ForCausalLM.*latent attention") as caught:
        wrap(random_model("DeepseekV3", **sizes))
    assert "\n" not in str(caught.value)


# -- costs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "experts", "chosen"),
    [
        ("Mixtral", dict(num_local_experts=4, num_experts_per_tok=2), 3 * 4 * 3 * 32 * 48, 2 / 4),
        ("Qwen3Moe", dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8), 36864, 2 / 8),
        ("GraniteMoe", dict(num_local_experts=4, num_experts_per_tok=1), 3 * 4 * 3 * 32 * 48, 1 / 4),
        ("Llama", {}, 0, 1),
    ],
)
def test_a_row_costs_the_experts_it_meets(name, sizes, experts, chosen):
    """All experts were counted for every row, and untied input embeddings as a product."""
    lm = wrap(model := random_model(name, tie_word_embeddings=False, **sizes))
    weights = sum(p.numel() for p in model.parameters()) - 64 * 32 - experts  # the input embeddings are looked up
    attention = 4 * 3 * 4 * 8
    assert lm.forward_flops(2, 10) == 2 * (2 * (weights + chosen * experts) + attention * 10)
    assert lm.weights_read(1) == 4 * (weights + chosen * experts)
    assert lm.weights_read(500) == pytest.approx(4 * (weights + experts))
    forwards = wb.decode(lm, PROMPT, max_new_tokens=2).forwards
    assert forwards["weight_bytes"].tolist() == [lm.weights_read(10), lm.weights_read(1), lm.weights_read(1)]
    tied = wrap(random_model(name, tie_word_embeddings=True, **sizes))
    assert tied.forward_flops(2, 10) == lm.forward_flops(2, 10), "a tied matrix is the head's, once"


def test_keys_and_values_count_their_own_widths():
    """`kv_bytes` is what the cache really holds of a token; GPT-BigCode's config names no number of KV heads."""
    for model in (random_model("GPTBigCode", n_embd=32, n_layer=3, n_head=4, n_positions=128), random_model()):
        lm = wrap(model)
        store = lm.new_store()
        lm.forward(PROMPT, range(len(PROMPT)), store)
        store.commit(range(len(PROMPT)))
        held = store._run
        sizes = [x[:, :1].nbytes for x in (*held.k, *held.v)]
        assert lm.kv_bytes() == sum(sizes) and lm.kv_heads == held.k[0].shape[0]
