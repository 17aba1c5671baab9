"""Our decoders inside transformers' own `generate`, on an untouched model."""

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    StoppingCriteria,
    TextStreamer,
)

import workbench as wb
from workbench.errors import BadInput

DECODERS = {
    "autoregressive": lambda: wb.Autoregressive(),
    "chain": lambda: wb.Speculative(),
    "tree": lambda: wb.Speculative(shape=wb.FixedTree((2, 2, 1))),
    "copy": lambda: wb.Speculative(drafter=wb.CopySpec()),
}
LENGTH = 24


@pytest.fixture(scope="module")
def batch(lm, held_out):
    """Two prompts of different lengths, padded on the left."""
    texts = [lm.tokenizer.encode(held_out[i])[-n:] for i, n in ((0, 60), (5, 41))]
    ids = torch.tensor([[0] * (60 - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (60 - len(text)) + [1] * len(text) for text in texts])
    return texts, {"input_ids": ids, "attention_mask": mask, "pad_token_id": 0}


@pytest.mark.parametrize("name", DECODERS)
def test_a_padded_batch_gives_what_generate_and_decode_give(name, lm, batch):
    texts, inputs = batch
    plugin = wb.custom_generate(DECODERS[name](), level="off")
    found = lm.model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False, custom_generate=plugin)
    assert torch.equal(found, lm.model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False))
    for row, text in zip(found.tolist(), texts, strict=True):
        expected = wb.decode(lm, text, DECODERS[name](), max_new_tokens=LENGTH).token_ids
        assert row[60 : 60 + len(expected)] == expected
        assert set(row[60 + len(expected) :]) <= {0}
    assert [trace.token_ids for trace in plugin.traces] == [
        wb.decode(lm, text, max_new_tokens=LENGTH).token_ids for text in texts
    ]


def test_sampling_settings_of_the_call_are_those_of_the_run(lm, batch):
    """temperature, top-k (50 where the call says nothing, as in transformers), top-p and the seed of the decoder."""
    texts, inputs = batch
    settings = {"temperature": 0.9, "top_p": 0.95}
    for decoder in (None, wb.Speculative()):
        plugin = wb.custom_generate(decoder, seed=4)
        found = lm.model.generate(**inputs, max_new_tokens=LENGTH, do_sample=True, custom_generate=plugin, **settings)
        for number, (row, text) in enumerate(zip(found.tolist(), texts, strict=True)):
            top_k, own = lm.model.generation_config.top_k or 50, {"seed": 4, "sample": number}  # rows are samples
            expected = wb.decode(lm, text, max_new_tokens=LENGTH, top_k=top_k, **own, **settings).token_ids
            assert row[60 : 60 + len(expected)] == expected
    assert plugin.traces[0].run["sampling"]["temperature"] == 0.9


def test_processors_stopping_criteria_and_end_of_text_of_the_call_hold(lm, batch):
    texts, _ = batch
    ids = torch.tensor([texts[0]])

    class After(StoppingCriteria):
        def __call__(self, input_ids, scores, **more):
            return torch.tensor([input_ids.shape[1] >= ids.shape[1] + 5])

    options = dict(do_sample=False, max_new_tokens=LENGTH, repetition_penalty=1.3, no_repeat_ngram_size=3)
    for decoder in (None, wb.Speculative(), wb.Speculative(drafter=wb.CopySpec(ngram=1))):
        plugin = wb.custom_generate(decoder)
        stock = lm.model.generate(ids, **options)
        assert torch.equal(lm.model.generate(ids, custom_generate=plugin, **options), stock)
        short = lm.model.generate(ids, custom_generate=plugin, stopping_criteria=[After()], **options)
        assert torch.equal(short, stock[:, : ids.shape[1] + 5])
        eos = stock[0, ids.shape[1] + 8].item()
        ended = lm.model.generate(ids, custom_generate=plugin, eos_token_id=eos, pad_token_id=0, **options)
        assert torch.equal(ended, lm.model.generate(ids, eos_token_id=eos, pad_token_id=0, **options))
        least = MinNewTokensLengthLogitsProcessor(ids.shape[1], 12, eos)
        late = lm.model.generate(ids, custom_generate=plugin, eos_token_id=eos, logits_processor=[least], **options)
        assert torch.equal(late, lm.model.generate(ids, eos_token_id=eos, logits_processor=[least], **options))


def test_streamers_and_output_objects(lm, batch, capsys):
    texts, inputs = batch
    ids = torch.tensor([texts[0]])
    options = dict(do_sample=False, max_new_tokens=LENGTH)
    lm.model.generate(ids, streamer=TextStreamer(lm.tokenizer), **options)
    expected = capsys.readouterr().out
    for decoder in (None, wb.Speculative()):
        plugin = wb.custom_generate(decoder, streamer=TextStreamer(lm.tokenizer))
        lm.model.generate(ids, custom_generate=plugin, **options)
        assert capsys.readouterr().out == expected
    with pytest.raises(BadInput, match="batch of one row, got 2"):
        lm.model.generate(**inputs, custom_generate=plugin, **options)
    found = lm.model.generate(**inputs, custom_generate=wb.custom_generate(), return_dict_in_generate=True, **options)
    assert torch.equal(found.sequences, lm.model.generate(**inputs, **options))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_beams": 2}, r"searches as custom_generate\(Beam\(beams=2\)\)"),
        ({"epsilon_cutoff": 0.01, "do_sample": True}, "epsilon_cutoff"),
        ({"eta_cutoff": 0.01, "do_sample": True}, "eta_cutoff"),
        ({"output_scores": True, "return_dict_in_generate": True}, "expected output_scores unset"),
    ],
    ids=str,
)
def test_what_it_does_not_serve_is_refused_in_one_line(lm, batch, options, reason):
    with pytest.raises(BadInput, match=reason) as caught:
        lm.model.generate(**batch[1], max_new_tokens=4, custom_generate=wb.custom_generate(), **options)
    assert "\n" not in str(caught.value)


def test_returned_sequences_are_samples_of_their_own(lm, batch):
    """Row i of what comes back draws as `decode(…, sample=i)` does."""
    texts, _ = batch
    ids = torch.tensor([texts[0]])
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": 6, "num_return_sequences": 3}
    found = lm.model.generate(
        ids, attention_mask=torch.ones_like(ids), custom_generate=wb.custom_generate(seed=3), **options
    )
    alone = [wb.decode(lm, list(texts[0]), temperature=1.0, seed=3, sample=i, max_new_tokens=6) for i in range(3)]
    rows = zip(found[:, len(texts[0]) :].tolist(), alone, strict=True)
    assert all(row[: len(trace.token_ids)] == trace.token_ids for row, trace in rows)
    assert len({tuple(trace.token_ids) for trace in alone}) > 1


def test_the_model_is_left_as_it_was(lm, batch):
    before = (lm.model.config._attn_implementation, lm.model.training, lm.model.generation_config.to_dict())
    lm.model.generate(**batch[1], max_new_tokens=4, do_sample=False, custom_generate=wb.custom_generate())
    assert before == (lm.model.config._attn_implementation, lm.model.training, lm.model.generation_config.to_dict())
