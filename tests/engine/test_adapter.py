"""The adapter against the stock models, on randomly initialised configs; runs on every supported transformers."""

import copy

import pytest
import torch
import transformers as tf

import workbench as wb
from workbench.cache import PlainStore, Segment
from workbench.errors import BadInput, Unsupported
from workbench.models.adapter import wrap

SIZES = dict(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
WINDOW = 8  # of sliding layers; every text below is longer
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [4.0, 9.0], "rope_theta": 1e4}


def phi3(**more) -> tf.PreTrainedModel:
    longrope = more.pop("longrope", False)
    if longrope:
        more |= {"rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5}, "original_max_position_embeddings": 64}
    else:
        more |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
    return tf.Phi3ForCausalLM(tf.Phi3Config(**SIZES, **more))


def smollm3() -> tf.PreTrainedModel:
    return tf.SmolLM3ForCausalLM(tf.SmolLM3Config(**SIZES, no_rope_layers=[1, 0, 1]))


def qwen2_mixed() -> tf.PreTrainedModel:
    """Layer 0 full, layers 1 and 2 sliding."""
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    more = dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1, layer_types=kinds)
    return tf.Qwen2ForCausalLM(tf.Qwen2Config(**SIZES, **more))


def gpt2(**more) -> tf.PreTrainedModel:
    sizes = dict(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=256, bos_token_id=None, eos_token_id=None)
    return tf.GPT2LMHeadModel(tf.GPT2Config(**sizes, **more))


def gpt_neox() -> tf.PreTrainedModel:
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    return tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**sizes, rope_parameters=rope))


def llama(**more) -> tf.PreTrainedModel:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**{**SIZES, **more}))


MODELS = {
    "llama-gqa": llama,
    "llama-mha": lambda: llama(num_key_value_heads=4),
    "llama-mqa": lambda: llama(num_key_value_heads=1),
    "llama-wide-heads": lambda: llama(head_dim=16),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**SIZES)),
    "qwen2-mixed-windows": qwen2_mixed,
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**SIZES, head_dim=16)),
    "mistral-window": lambda: tf.MistralForCausalLM(tf.MistralConfig(**SIZES, sliding_window=WINDOW)),
    "smollm3-nope": smollm3,
    "phi3-window-partial-rotary": lambda: phi3(sliding_window=WINDOW),
    "phi3-longrope": lambda: phi3(longrope=True),
    "gpt-neox": gpt_neox,
    "gpt2": gpt2,
    "gpt2-scaled-by-layer": lambda: gpt2(scale_attn_by_inverse_layer_idx=True),
}
PROMPT = [(37 * i + 11) % 97 for i in range(28)]


def build(name: str, dtype: torch.dtype = torch.float64) -> tf.PreTrainedModel:
    """A model with weights wide enough that its distribution is far from uniform and attention matters."""
    torch.manual_seed(sum(map(ord, name)))
    model = MODELS[name]().to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


@torch.inference_mode()
def stock(model: tf.PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """[n, V] logits of one full forward of the model itself."""
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    worst = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()
    assert worst < tolerance, f"relative error {worst:.1e}"


# Norms and rotary factors are computed in fp32 by many of the models themselves, so fp64 inputs that differ in the
# last bit may meet an fp32 rounding boundary inside.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 6e-2}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", MODELS)
def test_chunks_and_steps_give_the_stock_logits(name, dtype):
    """A prompt in two chunks, then rows one by one, equal one full forward of the stock model."""
    model = build(name, dtype)
    lm, expected = wrap(model), stock(model, PROMPT)
    store, rows = lm.new_store(), []
    for start, end in [(0, 5), (5, 19), *((i, i + 1) for i in range(19, 28))]:
        rows.append(lm.forward(PROMPT[start:end], range(start, end), store).logits)
        store.commit(range(end - start))
    close(torch.cat(rows), expected, TOLERANCE[dtype])
    assert store.length == len(PROMPT)


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox"])
def test_models_that_keep_fp64_agree_to_1e_12(name):
    """LayerNorm keeps fp64: no rounding is left to blame but that of the sums."""
    model = build(name)
    lm, store = wrap(model), wrap(model).new_store()
    first = lm.forward(PROMPT[:9], range(9), store).logits
    store.commit(range(9))
    rest = lm.forward(PROMPT[9:], range(9, 28), store).logits
    close(torch.cat([first, rest]), stock(model, PROMPT), 1e-9 if name == "gpt-neox" else 1e-12)


def grow_tree(lm, store: PlainStore, at: int) -> dict[int, torch.Tensor]:
    """Seven staged rows over three forwards of one round; row -> logits. Parents: -1, 0, 0, 1, 1, 2, 5."""
    parents, depths = [-1, 0, 0, 1, 1, 2, 5], [0, 1, 1, 2, 2, 2, 3]
    mask = torch.eye(7, dtype=torch.bool)
    for row, parent in enumerate(parents):
        if parent >= 0:
            mask[row] |= mask[parent]
    logits = {}
    for rows in ([0], [1, 2], [3, 4, 5, 6]):
        visible = None if rows == [0] else mask[rows][:, : rows[-1] + 1]
        out = lm.forward([TREE[r] for r in rows], [at + depths[r] for r in rows], store, visible)
        logits |= dict(zip(rows, out.logits, strict=True))
    return logits


TREE = [3, 50, 60, 7, 8, 9, 10]
PATHS = {0: [0], 1: [0, 1], 2: [0, 2], 3: [0, 1, 3], 4: [0, 1, 4], 5: [0, 2, 5], 6: [0, 2, 5, 6]}


@pytest.mark.parametrize("name", MODELS)
def test_a_branching_tree_equals_each_path_run_alone(name):
    """Staged over several forwards; then the chosen rows are committed and the next step equals a fresh prefill."""
    model = build(name)
    lm, prefix = wrap(model), PROMPT[:17]
    store = lm.new_store()
    lm.forward(prefix, range(17), store)
    store.commit(range(17))
    logits = grow_tree(lm, store, 17)
    for node, path in PATHS.items():
        close(logits[node], stock(model, prefix + [TREE[n] for n in path])[-1], TOLERANCE[torch.float64])
    store.commit([0, 2, 5])
    assert (store.length, store.staged) == (20, 0)
    after = lm.forward([42], [20], store).logits[0]
    close(after, stock(model, [*prefix, TREE[0], TREE[2], TREE[5], 42])[-1], TOLERANCE[torch.float64])
    store.discard()
    again = lm.forward([43], [20], store).logits[0]  # a discarded row leaves nothing behind
    close(again, stock(model, [*prefix, TREE[0], TREE[2], TREE[5], 43])[-1], TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", MODELS)
def test_greedy_decode_is_generate(name):
    model = build(name)
    expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False)[0, len(PROMPT) :].tolist()
    lm = wrap(model)
    assert wb.decode(lm, PROMPT, max_new_tokens=24, level="off").token_ids == expected
    copying = wb.Speculative(drafter=wb.CopySpec(ngram=1))
    assert wb.decode(lm, PROMPT, copying, max_new_tokens=24, level="off").token_ids == expected


class Pieces(PlainStore):
    """Answers with many small segments, some of which are hidden from some rows."""

    def segments(self, layer: int, window: int | None = None, query: torch.Tensor | None = None) -> list[Segment]:
        (whole,) = super().segments(layer, window)
        n = whole.k.shape[1]
        mask = torch.ones(self._rows, n, dtype=torch.bool).tril() if whole.causal else whole.mask
        cuts = [(i, min(i + 3, n)) for i in range(0, n, 3)]
        return [Segment(whole.k[:, a:b], whole.v[:, a:b], None if mask is None else mask[:, a:b]) for a, b in cuts]


@pytest.mark.parametrize("name", ["llama-gqa", "mistral-window", "gpt2", "smollm3-nope"])
def test_segments_in_pieces_merge_to_the_same_logits(name):
    model = build(name)
    lm, store = wrap(model), Pieces(3)
    first = lm.forward(PROMPT[:17], range(17), store).logits
    close(first, stock(model, PROMPT[:17]), TOLERANCE[torch.float64])
    store.commit(range(17))
    for node, row in grow_tree(lm, store, 17).items():
        path = PROMPT[:17] + [TREE[n] for n in PATHS[node]]
        close(row, stock(model, path)[-1], TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2"])
def test_rows_asked_for_hidden_states_and_embeddings(name):
    model = build(name)
    lm = wrap(model)

    def run(tokens=PROMPT, **options):
        return lm.forward(tokens, range(len(PROMPT)), lm.new_store(), **options)

    every = run().logits
    assert every.shape == (28, 97)
    assert torch.allclose(run(logits_at="last").logits, every[-1:], rtol=1e-12)
    assert torch.allclose(run(logits_at=[2, 9]).logits, every[[2, 9]], rtol=1e-12)
    hidden = run(want=("hidden",), logits_at=[2, 9])
    assert hidden.hidden.shape == (28, 32)
    assert torch.allclose(hidden.logits, every[[2, 9]], rtol=1e-12)
    assert torch.allclose(lm.head(hidden.hidden), every, rtol=1e-12)
    assert torch.allclose(run(lm.embed(PROMPT)).logits, every, rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["llama-gqa", "qwen2-mixed-windows", "mistral-window", "smollm3-nope", "gpt-neox", "gpt2"]
)
@pytest.mark.parametrize("layers", [[0, 1], [0, 2], [1]], ids=str)
def test_some_layers_only_equal_a_model_without_the_others(name, layers):
    """Chunk by chunk, the staged rows of the layers that ran are seen; afterwards all layers are there again."""
    model = build(name)
    lm, store = wrap(model), wrap(model).new_store()
    parts = [lm.forward(PROMPT[a:b], range(a, b), store, layers=layers).logits for a, b in [(0, 9), (9, 28)]]
    store.discard()
    cut = copy.deepcopy(model)
    whole = next(m for m in cut.base_model.children() if isinstance(m, torch.nn.ModuleList))
    for dropped in sorted(set(range(len(whole))) - set(layers), reverse=True):
        del whole[dropped]
    if getattr(cut.config, "layer_types", None):
        cut.config.layer_types = [cut.config.layer_types[layer] for layer in layers]
    close(torch.cat(parts), stock(cut, PROMPT), TOLERANCE[torch.float64])
    close(lm.forward(PROMPT, range(28), store).logits, stock(model, PROMPT), TOLERANCE[torch.float64])
    with pytest.raises(wb.BadInput, match=r"layers: expected numbers in \[0, 3\), got \[3\]"):
        lm.forward(PROMPT, range(28), lm.new_store(), layers=[3])


@pytest.mark.parametrize("name", ["llama-gqa", "mistral-window", "gpt2"])
def test_bf16_stays_near_the_stock_model(name):
    model = build(name, torch.bfloat16)
    lm, store = wrap(model), PlainStore(3)
    close(lm.forward(PROMPT, range(28), store).logits, stock(model, PROMPT), TOLERANCE[torch.bfloat16])
    assert store._run.k[0].dtype == torch.bfloat16
    assert len(wb.decode(lm, PROMPT, max_new_tokens=4).token_ids) == 4


def picture(model: tf.PreTrainedModel) -> dict:
    """All that a careless wrapper could change in a model."""
    return {
        "attributes": sorted(vars(model)),
        "config": copy.deepcopy(model.config.to_dict()),
        "attention": model.config._attn_implementation,
        "modes": {name: module.training for name, module in model.named_modules()},
        "forwards": {name: type(module).forward for name, module in model.named_modules()},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "weights": {n: (t.data_ptr(), t.sum().item()) for n, t in [*model.named_parameters(), *model.named_buffers()]},
    }


@pytest.mark.parametrize("name", ["llama-gqa", "mistral-window", "gpt2", "phi3-longrope"])
def test_the_users_model_is_untouched(name):
    """Wrapped while training, with one part in evaluation mode, and used: nothing about it has changed."""
    model = build(name)
    output = stock(model, PROMPT)
    model.train().get_output_embeddings().eval()
    before = picture(model)
    lm = wrap(model)
    wb.decode(lm, PROMPT, wb.Speculative(drafter=wb.CopySpec(ngram=1)), max_new_tokens=8)
    assert picture(model) == before
    assert lm.model is model
    assert wrap(model) is lm
    assert torch.equal(stock(model.eval(), PROMPT), output)


def test_weights_are_shared_not_copied():
    model = build("llama-gqa")
    lm = wrap(model)
    ours = {p.data_ptr() for p in lm._engine.parameters()}
    assert ours == {p.data_ptr() for p in model.parameters()}
    before = lm.forward(PROMPT, range(28), lm.new_store()).logits
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(0)
    assert not torch.equal(lm.forward(PROMPT, range(28), lm.new_store()).logits, before)


def test_longrope_serves_the_length_at_which_its_factors_are_constant():
    """Beyond it a draft's length would change the distribution of every row: the stock model itself rotates all keys
    anew."""
    lm = wrap(build("phi3-longrope"))
    assert lm.context == 64
    with pytest.raises(BadInput, match="context of 64"):
        wb.decode(lm, (PROMPT * 3)[:64])


# -- refusals -----------------------------------------------------------------------------------------------------


class Uncached(tf.LlamaForCausalLM):
    """Deliberately wrong: one layer attends to this forward's keys alone."""

    def __init__(self, config):
        super().__init__(config)
        layer = self.model.layers[1].self_attn
        stock_forward = type(layer).forward

        def forward(self, *arguments, **options):
            return stock_forward(self, *arguments, **_drop(options))

        layer.__class__ = type("Forgetful", (type(layer),), {"forward": forward})


def _drop(options: dict) -> dict:
    return {name: value for name, value in options.items() if name not in ("past_key_values", "past_key_value")}


class Slots(tf.LlamaForCausalLM):
    """Deliberately wrong: counts slots instead of using the positions it is given."""

    def forward(self, input_ids=None, position_ids=None, past_key_values=None, **more):
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        slots = torch.arange(seen, seen + input_ids.shape[1])[None]
        return super().forward(input_ids, position_ids=slots, past_key_values=past_key_values, **more)


class Smoothed(tf.LlamaForCausalLM):
    """Deliberately wrong: logits depend on the other rows of the same forward."""

    def forward(self, *arguments, **options):
        out = super().forward(*arguments, **options)
        out.logits = out.logits + out.logits.mean(1, keepdim=True)
        return out


def tiny(config, cls, **sizes):
    return cls(config(**{**SIZES, **sizes}))


LINEAR = ["linear_attention", "full_attention", "linear_attention"]
REFUSED = {
    "encoder-decoder": (
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
        ),
        "encoder-decoder",
    ),
    "state-space": (
        lambda: tf.MambaForCausalLM(tf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4)),
        "MambaForCausalLM",
    ),
    "linear-attention": (
        lambda: tiny(
            tf.Qwen3NextConfig,
            tf.Qwen3NextForCausalLM,
            layer_types=LINEAR,
            head_dim=16,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        "linear_attention",
    ),  # fmt: skip
    "soft-capping": (lambda: tiny(tf.Gemma2Config, tf.Gemma2ForCausalLM, head_dim=8), "soft-capped"),
    "attention-sinks": (
        lambda: tiny(
            tf.GptOssConfig,
            tf.GptOssForCausalLM,
            head_dim=8,
            num_local_experts=2,
            num_experts_per_tok=1,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ),
        "sinks",
    ),  # fmt: skip
    "no-head": (lambda: tf.LlamaModel(tf.LlamaConfig(**SIZES)), "no language-model head"),
    "window-by-mask-alone": (
        lambda: tiny(
            tf.Qwen2MoeConfig,
            tf.Qwen2MoeForCausalLM,
            use_sliding_window=True,
            sliding_window=WINDOW,
            max_window_layers=0,
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            layer_types=["sliding_attention"] * 3,
        ),
        "sliding window",
    ),  # fmt: skip
    "past-the-cache": (lambda: Uncached(tf.LlamaConfig(**SIZES)), "keys from the cache"),
    "slots-as-positions": (lambda: Slots(tf.LlamaConfig(**SIZES)), "other logits"),
    "rows-mixed": (lambda: Smoothed(tf.LlamaConfig(**SIZES)), "other logits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_refused_in_one_line(case):
    make, reason = REFUSED[case]
    torch.manual_seed(0)
    model = make().eval()
    with pytest.raises(Unsupported, match=reason) as caught:
        wrap(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "thing", [object(), "llama", None, torch.nn.Linear(2, 2)], ids=["object", "text", "none", "layer"]
)
def test_what_is_no_model_is_refused(thing):
    with pytest.raises(BadInput, match=r"expected a transformers model.*workbench.load") as caught:
        wrap(thing)
    assert "\n" not in str(caught.value)
