"""The fast bodies: the stock logits in whatever a forward may ask, taken where they fit and refused with a reason."""

import shutil
from types import MethodType

import pytest
import torch
import transformers as tf

import workbench as wb
from tests.engine.test_adapter import MODELS, PROMPT, SIZES, WINDOW, build, close, llama
from workbench.engine.model import ForwardRequest
from workbench.errors import Unsupported
from workbench.models.adapter import TransformersModel, wrap
from workbench.models.codes import rounded
from workbench.models.fast import FastBody, Norm
from workbench.models.native import NativeBody
from workbench_kernels.native import COMPILERS

KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
FORMS = {name: MODELS[name] for name in MODELS if not name.startswith(("gpt", "phi3-longrope"))} | {
    "llama-biased": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama-scaled-rotary": lambda: llama(rope_parameters=YARN),
    "llama-gelu": lambda: llama(hidden_act="gelu"),
    "llama-coded": lambda: llama(hidden_size=64, intermediate_size=96),
    "llama-relu": lambda: llama(hidden_act="relu", intermediate_size=50),
    "gemma3": lambda: tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=WINDOW, layer_types=KINDS)
    ),
    "olmo2": lambda: tf.Olmo2ForCausalLM(tf.Olmo2Config(**SIZES)),
    "starcoder2": lambda: tf.Starcoder2ForCausalLM(tf.Starcoder2Config(**SIZES)),
}
TREE = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], dtype=torch.bool)


HAS_COMPILER = any(map(shutil.which, COMPILERS))  # a source that it does not take is a failure, not a skip
BODIES = [
    pytest.param(FastBody, id="torch"),
    pytest.param(NativeBody, id="compiled", marks=pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")),
]
compiled = BODIES[1].marks[0]


def made(name: str) -> tf.PreTrainedModel:
    """In float32, with numbers that bfloat16 holds; where it is coded, of 4 bits in products and 8 in embeddings."""
    MODELS.setdefault(name, FORMS[name])
    model = build(name, torch.float32)
    for place, weight in model.named_parameters():
        if name.endswith("coded") and weight.ndim == 2:
            weight.data = rounded(weight.data, 8 if "embed" in place or "head" in place else 4)
        else:
            weight.data = weight.data.bfloat16().float()
    return model


def served(model: tf.PreTrainedModel, *bodies: type[FastBody]) -> TransformersModel:
    return type("Served", (TransformersModel,), {"bodies": bodies})(model)


def both(name: str, body: type[FastBody]) -> tuple[TransformersModel, TransformersModel]:
    """One model with that body, and with its own."""
    model = made(name)
    fast, stock = served(model, body), served(model)
    assert (fast.body, stock.body) == (("fast", None), ("stock", "no fast body: asked for"))
    fast._engine.forward = fast._engine.base_model.forward = None  # whoever calls them fails
    return fast, stock


LONG = PROMPT * 10


def prefilled(lm: TransformersModel, count: int = 17, store=None):
    """A store with that many tokens more."""
    store = store or lm.new_store()
    start = store.length
    lm.forward(LONG[start : start + count], range(start, start + count), store, logits_at=())
    store.commit(range(count))
    return store


def same(ours, theirs) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        close(mine, other, 1e-5)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", FORMS)
def test_every_request_gives_what_the_models_own_body_gives(name, body):
    """Trees, hidden states, states of layers, some layers only, given states, watched rows."""
    asked = {"mask": TREE, "want": ("hidden", "exit", 1, 3), "logits_at": [0, 3]}

    def answers(lm):
        store = prefilled(lm)
        for watched in ((), (0, 2)):
            store.watched, masses = watched, []
            store.add_mass = lambda layer, mass, masses=masses: masses.append(mass)
            out = lm.forward([3, 50, 60, 7], [17, 18, 18, 19], store, **asked)
            yield from (out.logits, out.hidden, out.exit, out.states[1], out.states[3], *masses)
            assert set(out.states) == {1, 3} and len(masses) == (3 if watched else 0)
            store.discard()
        store.watched = ()
        yield lm.head(out.hidden)
        below = lm.forward([5, 6], [17, 18], store, layers=[0, 1], want=("exit",), logits_at=())
        above = lm.forward(below.exit, [17, 18], store, layers=[2], want=("exit",))
        yield from (below.exit, above.logits, above.exit)
        store.commit([0])
        yield lm.forward(lm.embed([9, 8]), [18, 19], store).logits

    same(*map(answers, both(name, body)))


@torch.inference_mode()
def bundled(lm: TransformersModel) -> list[torch.Tensor]:
    """Sequences of their own, and some that share a trunk of two pieces."""
    trunk = prefilled(lm, 140)
    trunk.share()
    prefilled(lm, 131, trunk).share()
    assert len(trunk.trunk) == 2
    stores = [prefilled(lm, 5), trunk.fork(), trunk.fork(), prefilled(lm, 3, trunk.fork())]
    rows = [([3, 4], [5, 6]), ([8], [271]), ([9, 1, 2], [271, 272, 273]), ([5], [274])]
    outputs = lm.forward_many([ForwardRequest(*row, store) for row, store in zip(rows, stores, strict=True)])
    if lm.bodies == (NativeBody,):
        assert {store.implementation for store in stores} == {"native"}
    return [out.logits for out in outputs]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ["llama-gqa", "mistral-window", "gemma3"])
def test_bundles_and_trunks_read_the_same(name, body):
    same(*map(bundled, both(name, body)))


@pytest.mark.parametrize("body", BODIES)
def test_tokens_are_those_of_generate_by_the_fast_body_alone(body):
    fast, _ = both("llama-gqa", body)
    expected = fast.model.generate(torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False)[0, 28:].tolist()
    trace = wb.decode(fast, PROMPT, wb.Speculative(drafter=wb.CopySpec(ngram=1)), max_new_tokens=24)
    assert trace.token_ids == expected
    assert trace.run["body"]["name"] == "fast"


@pytest.mark.parametrize("body", BODIES)
def test_a_body_that_is_one_hundredth_off_is_not_taken(body):
    class Off(body):
        def __init__(self, model, scales, windows, read):
            super().__init__(model, [1.01 * scale for scale in scales], windows, read)

    name, reason = served(made("llama-gqa"), Off).body
    assert name == "stock" and reason.startswith("no fast body: it gives other logits (relative error ")


@pytest.mark.parametrize("body", BODIES)
def test_what_no_forward_can_take_is_refused(body):
    """Native code would read past their ends."""
    lm = served(made("llama-gqa"), body)
    store, states = prefilled(lm), torch.ones(2, 32)
    for given in (states.double(), states.bfloat16(), states[:, :31], states[:, None]):
        with pytest.raises(wb.BadInput, match="forward: "):
            lm.forward(given, [17, 18], store)
    with pytest.raises(wb.BadInput, match="forward: got 1 tokens and 2 positions"):
        lm.forward([3], [17, 18], store)
    with pytest.raises(RuntimeError):
        lm.head(states.double())
    assert lm.head(torch.ones(2, 5, 32)).shape == (2, 5, 97)
    assert lm.forward([3], [17], store, logits_at=()).logits.shape == (0, 97)


# -- refusals -----------------------------------------------------------------------------------------------------


class Own(tf.LlamaForCausalLM):
    """Code of a stranger's."""


def hooked() -> tf.PreTrainedModel:
    model = made("llama-gqa")
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output)
    return model


def patched() -> tf.PreTrainedModel:
    model = made("llama-gqa")
    mlp = model.model.layers[1].mlp
    mlp.forward = MethodType(type(mlp).forward, mlp)
    return model


def wrapped() -> tf.PreTrainedModel:
    model = made("llama-gqa")
    mlp = model.model.layers[1].mlp
    mlp.down_proj = torch.nn.Sequential(mlp.down_proj)
    return model


REASONS = {
    "own code": (lambda: Own(tf.LlamaConfig(**SIZES)), "Own is not of transformers"),
    "hooks": (hooked, "LlamaMLP has hooks"),
    "a method of its own": (patched, "LlamaMLP has hooks"),
    "another linear": (wrapped, "Sequential in place of Linear"),
    "another dtype": (lambda: build("llama-gqa", torch.float64), "the fast body is for float32 on a CPU"),
    "another form": (lambda: build("gpt2", torch.float32), "layers with attn, ln_1, ln_2"),
    "longrope": (lambda: build("phi3-longrope", torch.float32), "rotary angles that follow the length"),
    "experts": (lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**SIZES, num_local_experts=4)), "layers of another"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_does_not_fit_runs_as_it_is_and_the_trace_says_why(name):
    make, reason = REASONS[name]
    torch.manual_seed(0)
    trace = wb.decode(wrap(make().eval()), PROMPT, max_new_tokens=2)
    assert trace.run["body"]["name"] == "stock"
    assert reason in trace.run["body"]["reason"]


def test_changes_of_the_model_are_seen():
    """Numbers at once; a module in another's place with the next run."""
    model = build("llama-gqa", torch.float32)
    lm = wrap(model)
    assert lm.body[0] == "fast"
    before = lm.forward(PROMPT, range(28), lm.new_store()).logits
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    changed = lm.forward(PROMPT, range(28), lm.new_store()).logits
    close(changed, model(torch.tensor([PROMPT]), use_cache=False).logits[0], 1e-5)
    assert not torch.allclose(changed, before)
    model.model.layers[0].mlp = wrapped().model.layers[1].mlp
    assert wrap(model).body == ("stock", "no fast body: Sequential in place of Linear")
    logits = lm.forward(PROMPT, range(28), lm.new_store()).logits
    close(logits, model(torch.tensor([PROMPT]), use_cache=False).logits[0], 1e-5)


def test_a_cap_on_large_logits_is_seen():
    """Logits of the trial are far below it."""
    how = dict(attn_logit_softcapping=None, final_logit_softcapping=30.0, head_dim=8)
    lm = wrap(tf.Gemma2ForCausalLM(tf.Gemma2Config(**SIZES, **how)).eval())
    assert lm.body[0] == "stock"


def test_norms_are_told_by_what_they_give():
    class Scaled(torch.nn.LayerNorm):
        eps = 1e-5

        def forward(self, x):
            return 2 * super().forward(x)

    torch.manual_seed(0)
    plain = torch.nn.LayerNorm(8)
    torch.nn.init.normal_(plain.weight)
    x = torch.randn(3, 8)
    assert torch.equal(Norm.of(plain)(x), plain(x))
    with pytest.raises(Unsupported, match="Scaled is neither LayerNorm nor RMSNorm"):
        Norm.of(Scaled(8))
