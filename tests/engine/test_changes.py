"""A model that is changed after its first use answers as it is now: nothing that is remembered about it goes stale."""

import pytest
import torch
from torch import nn

import workbench as wb
from tests.engine.small import PROMPT, random_model, stock, words
from workbench.models.adapter import wrap


def resize(model) -> None:
    model.resize_token_embeddings(72)
    model.get_input_embeddings().weight.data[64:].normal_(0, 0.3, generator=torch.Generator().manual_seed(1))


def new_head(model) -> None:
    model.lm_head = nn.Linear(32, 64, bias=False)
    model.lm_head.weight.data.normal_(0, 1, generator=torch.Generator().manual_seed(9))


def new_weight(model) -> None:
    """As merged adapters leave it: another tensor under the same parameter."""
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.data = weight.data + torch.ones_like(weight) / 3


def in_place(model) -> None:
    model.lm_head.weight.data.normal_(0, 1, generator=torch.Generator().manual_seed(9))


def other_layer(model) -> None:
    model.model.layers[0] = random_model(seed=4).model.layers[0]


def other_function(model) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.Tanh()


def setting(model) -> None:
    for layer in model.model.layers:
        layer.self_attn.scaling = 0.9


def hook(model) -> None:
    model.model.layers[1].register_forward_hook(lambda module, args, out: out.roll(1, -1))


def fewer_layers(model) -> None:
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2


def double(model) -> None:
    model.double()


CHANGES = [resize, new_head, new_weight, in_place, other_layer, other_function, setting, hook, fewer_layers, double]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_answers_as_generate_does(change):
    """By the model itself, by what was wrapped before, by its registered name and as `custom_generate`."""
    model, custom = random_model(), wb.custom_generate()
    model.generation_config.eos_token_id = None
    lm = wb.register_model("changing", model)
    before = wb.decode(lm, PROMPT, max_new_tokens=6).token_ids
    change(model)
    prompt = [*PROMPT, 70] if change is resize else PROMPT
    wanted = stock(model, prompt, 6)
    assert wanted != before or change in (double, resize), "the change shows nothing"
    for given in (lm, "changing"):
        assert wb.decode(given, prompt, max_new_tokens=6).token_ids == wanted
    ids = torch.tensor([prompt])
    out = model.generate(ids, max_new_tokens=6, do_sample=False, custom_generate=custom)
    assert out[0, len(prompt) :].tolist() == wanted
    assert (lm.dtype, lm.vocab_size) == (model.dtype, model.lm_head.weight.shape[0])


def test_a_model_that_was_not_changed_is_not_wrapped_again():
    model = random_model()
    lm = wrap(model)
    engine = lm._engine
    wb.decode(model, PROMPT, max_new_tokens=2)
    assert wrap(model)._engine is engine
    model.train()
    assert wrap(model)._engine is engine, "the mode is not the model"


def test_a_change_that_cannot_be_served_is_refused():
    """And once it is undone the model is served again."""
    lm = wrap(model := random_model())
    layer, kept = model.model.layers[1], model.model.layers[1].self_attn

    class Forgetful(type(kept)):
        def forward(self, *args, past_key_values=None, **options):
            return super().forward(*args, **options)

    kept.__class__, own = Forgetful, type(kept)
    with pytest.raises(wb.Unsupported, match="keys from the cache"):
        wb.decode(lm, PROMPT, max_new_tokens=2)
    layer.self_attn.__class__ = own
    assert wb.decode(lm, PROMPT, max_new_tokens=6).token_ids == stock(model, PROMPT, 6)


def test_end_tokens_are_those_of_now():
    """Of the generation config, and of a session that is begun after they changed."""
    lm = wrap(model := random_model())
    text = wb.decode(lm, PROMPT, max_new_tokens=6, ignore_eos=True).token_ids
    model.generation_config.eos_token_id = [text[3]]
    assert lm.eos_ids == {text[3]}
    assert wb.decode(lm, PROMPT, max_new_tokens=6).token_ids == text[: text.index(text[3]) + 1]
    model.generation_config.eos_token_id = "end"
    with pytest.raises(wb.BadInput, match="expected integers"):
        wb.decode(lm, PROMPT)


def test_each_tokenizer_has_its_own():
    """A tokenizer given later, or grown since, is the one that reads the prompt."""
    model, first, second = random_model(), words(60), words(64)
    a, b = wrap(model, first), wrap(model, second)
    assert (a.tokenizer, b.tokenizer) == (first, second) and wrap(model, first) is a and wrap(model) is b
    second.add_tokens(["<mark>"])
    with pytest.raises(wb.BadInput, match=r"\[0, 64\), got 64.*resize_token_embeddings"):
        wb.decode(b, "w5 <mark>", max_new_tokens=2)
    model.resize_token_embeddings(72)
    assert wb.Session(b, "w5 <mark>").prompt_ids == [5, 64]


def test_trained_parts_and_device_rounds_go_with_the_model_they_were_made_for(tmp_path, monkeypatch):
    """Both were kept by the model object: after a change they read what is gone."""
    from workbench.speculation.drafters.medusa import MedusaHeads
    from workbench.speculation.heads import weights

    monkeypatch.setenv("WORKBENCH_ROUND", "device")
    lm = wrap(model := random_model())
    heads = MedusaHeads(32, 2)
    weights.save(tmp_path / "medusa.safetensors", "medusa", heads, lm, {"width": 32, "heads": 2}, {})
    heads = wb.Speculative(drafter=wb.Medusa(weights=str(tmp_path)))
    wb.decode(lm, PROMPT, max_new_tokens=2)
    new_head(model)
    assert wb.decode(lm, PROMPT, max_new_tokens=8).token_ids == stock(model, PROMPT, 8)
    trace = wb.decode(lm, PROMPT, heads, max_new_tokens=8)
    assert trace.token_ids == stock(model, PROMPT, 8)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight.data.mul_(-3)
    with pytest.raises(wb.BadInput, match="trained for"):
        wb.decode(lm, PROMPT, heads)


def test_a_damaged_part_is_refused_in_one_line(tmp_path):
    """Metadata and tensors that lack each other were tracebacks of the library."""
    from safetensors.torch import save_file

    from workbench.speculation.drafters.medusa import MedusaHeads
    from workbench.speculation.heads import weights

    lm, file = wrap(random_model()), tmp_path / "medusa.safetensors"
    weights.save(file, "medusa", MedusaHeads(32, 2), lm, {"width": 10**7, "heads": 2}, {})
    for damage in (lambda: None, lambda: save_file({"x": torch.ones(1)}, file, {"kind": "medusa"})):
        damage()
        with pytest.raises(wb.BadInput, match="is damaged") as caught:
            wb.decode(lm, PROMPT, wb.Speculative(drafter=wb.Medusa(weights=str(file))))
        assert "\n" not in str(caught.value)


def test_a_corpus_written_anew_is_read_anew(tmp_path):
    """Its index was kept by its path alone."""
    lm, corpus = wrap(random_model(), words(64)), tmp_path / "corpus.txt"
    decoder = wb.Speculative(drafter=wb.SuffixRetrieval(corpus=str(corpus)))

    def drafted(follows: str) -> set:
        corpus.write_text(f"w41 w5 w9 {follows} " * 4)
        trace = wb.decode(lm, [33, 41, 5, 9], decoder, max_new_tokens=2, ignore_eos=True)
        return set(trace.drafts["token_id"]) if len(trace.drafts) else set()

    assert 20 in drafted("w20")
    assert 21 in drafted("w21")


def test_the_digest_follows_the_weights():
    """In place, under another tensor, in another dtype; and comes back with them."""
    lm = wrap(model := random_model())
    first, again = lm.describe()["digest"], wrap(random_model()).describe()["digest"]
    assert first == again and len(first) == 64
    row, seen = model.model.layers[1].mlp.up_proj.weight.data[7], {first}
    for change in (lambda: row.add_(1), lambda: new_weight(model), model.double):
        change()
        seen.add(wb.decode(lm, PROMPT, max_new_tokens=1).run["models"][0]["digest"])
    assert len(seen) == 4
    model.float()
    model.load_state_dict(random_model().state_dict())
    assert lm.describe()["digest"] == first
