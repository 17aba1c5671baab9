"""custom_generate is generate: rows of a padded batch, the caller's processors, draws, and what is refused by name."""

import pytest
import torch
import transformers
from transformers import generation as theirs

import workbench as wb
from workbench.errors import BadInput

LONG = [5, 9, 12, 7, 5, 9, 12, 33, 41, 5, 9]
ROWS = [LONG, LONG[:4], [17, 3, 22, 8, 8, 8, 30]]
DECODERS = {"plain": lambda: None, "drafted": lambda: wb.Speculative(drafter=wb.CopySpec(ngram=1))}


@pytest.fixture(scope="module")
def model():
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    noise = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.3, generator=noise)
    return model


def padded(rows) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]), "attention_mask": mask}


def generate(model, plugin=None, rows=ROWS, **settings):
    given = {"do_sample": False, "max_new_tokens": 7, **padded(rows), **settings}
    with_us = {} if plugin is None else {"custom_generate": plugin}
    return model.generate(**given, **with_us)


class Wants(theirs.LogitsProcessor):
    """Makes a token likely, so that what forbids or forces it has work to do."""

    def __init__(self, token: int):
        self.token = token

    def __call__(self, input_ids, scores):
        return scores + 40 * (torch.arange(scores.shape[-1]) == self.token)


class PerRow(theirs.LogitsProcessor):
    """A processor of the caller's that holds something for every row of the batch, and reads the other rows."""

    def __init__(self, shift: torch.Tensor):
        self.shift = shift

    def __call__(self, input_ids, scores):
        seen = torch.zeros_like(scores).scatter_(1, input_ids, 1.0)
        return scores + self.shift - seen.sum(0) / len(input_ids)


def end_at(length):
    """A stopping criterion with a length of its own for every row."""
    return lambda ids, scores, **rest: torch.tensor(length) <= ids.shape[1]


PROCESSED = {
    "min_length": dict(min_length=14, logits_processor=[Wants(2)]),
    "min_new_tokens": dict(min_new_tokens=3, logits_processor=[Wants(2)]),
    "forced_eos": dict(forced_eos_token_id=2),
    "forced_bos": dict(forced_bos_token_id=7, rows=[[5], [9], [12]]),
    "decay": dict(exponential_decay_length_penalty=(2, 5.0)),
    "repetition": dict(repetition_penalty=1.6),
    "encoder_repetition": dict(encoder_repetition_penalty=0.4),
    "ngram": dict(no_repeat_ngram_size=1),
    "encoder_ngram": dict(encoder_no_repeat_ngram_size=1),
    "bad_words": dict(bad_words_ids=[[8], [29, 58]]),
    "bias": dict(sequence_bias=[[[12], 6.0], [[5, 9], 9.0]]),
    "suppress": dict(suppress_tokens=[23, 8], begin_suppress_tokens=[18]),
    "prefix": dict(prefix_allowed_tokens_fn=lambda row, ids: [[10, 11, 12], [20, 21], [30, 31, 2]][row]),
    "prefix_reads": dict(prefix_allowed_tokens_fn=lambda row, ids: [3 + row, 3 + (len(ids) + int(ids[0])) % 60]),
    "infinite": dict(logits_processor=[lambda ids, scores: scores.index_fill(1, ids[0, -1:], torch.inf)]),
    "caller_list": dict(logits_processor=[theirs.MinNewTokensLengthLogitsProcessor(11, 5, 2), Wants(2)]),
    "watermark": dict(watermarking_config=transformers.WatermarkingConfig(bias=8.0)),
    "normalised": dict(renormalize_logits=True, repetition_penalty=1.3),
}


DRAFTED = ("min_new_tokens", "repetition", "prefix_reads", "encoder_ngram")  # under drafts too: rows go on unevenly


@pytest.mark.parametrize(
    ("name", "decoder"), [(name, "plain") for name in PROCESSED] + [(name, "drafted") for name in DRAFTED]
)
def test_padded_rows_equal_stock_under_processors(model, name, decoder):
    """Every row's processors see the row as stock shows it: padded, under its number in the batch."""
    stock = generate(model, **PROCESSED[name])
    assert not torch.equal(stock, generate(model, rows=PROCESSED[name].get("rows", ROWS)))  # it has something to do
    assert torch.equal(generate(model, wb.custom_generate(DECODERS[decoder](), level="off"), **PROCESSED[name]), stock)


def test_a_processor_of_the_callers_sees_the_whole_batch(model):
    """It is given every row as far as it is decoded, in its place: plain decoding takes turns as stock does."""
    given = dict(logits_processor=[PerRow(torch.randn(3, 64, generator=torch.Generator().manual_seed(1)) * 4)])
    assert torch.equal(generate(model, wb.custom_generate(), **given), generate(model, **given))


@pytest.mark.parametrize("eos", [2, None], ids=["eos", "no-eos"])
def test_stopping_criteria_are_those_of_the_call(model, eos):
    """Also the caller's own of a class that generate makes too; without end-of-text rows go on until all are done."""
    for given in (
        dict(stopping_criteria=[end_at([13, 18, 15])]),
        dict(stopping_criteria=[theirs.MaxLengthCriteria(14)]),
        dict(stopping_criteria=[theirs.MaxLengthCriteria(3)]),
        dict(stopping_criteria=[theirs.EosTokenCriteria(58)]),
    ):
        given |= {"eos_token_id": eos}
        assert torch.equal(generate(model, wb.custom_generate(level="off"), **given), generate(model, **given))


def test_masked_tokens_inside_a_row_are_not_there(model):
    holes = padded(ROWS)
    holes["attention_mask"][0, 3:5] = 0
    assert torch.equal(generate(model, wb.custom_generate(), **holes), generate(model, **holes))


OWN = {
    "top_k": theirs.TopKLogitsWarper(1),
    "temperature": theirs.TemperatureLogitsWarper(1e-4),
    "top_p": theirs.TopPLogitsWarper(1e-6),
    "min_p": theirs.MinPLogitsWarper(1.0),
    "epsilon": theirs.EpsilonLogitsWarper(0.9),
}


@pytest.mark.parametrize(
    ("name", "settings"), [(name, {}) for name in OWN] + [("top_k", dict(top_k=0)), ("top_p", dict(temperature=0.7))]
)
def test_the_callers_own_warpers_act(model, name, settings):
    """They stay in the chain, before those of the call's settings."""
    found = generate(model, wb.custom_generate(), do_sample=True, logits_processor=[OWN[name]], **settings)
    assert torch.equal(found, generate(model))


@pytest.mark.parametrize(
    "chain",
    [
        [theirs.TopKLogitsWarper(3)],
        [theirs.TopPLogitsWarper(0.5), theirs.TemperatureLogitsWarper(3.0)],
        [theirs.TemperatureLogitsWarper(150.0)],
        [theirs.TopKLogitsWarper(9, filter_value=-5.0)],
    ],
    ids=["top-k", "top-p, temperature", "temperature", "top-k of finite filter"],
)
def test_the_distribution_sampled_from_is_that_of_the_whole_chain(model, chain):
    """p_sampled of the first token, against stock's scores after all its processors."""
    settings = dict(do_sample=True, temperature=0.8, top_k=20, logits_processor=chain, max_new_tokens=1, rows=[LONG])
    scores = generate(model, output_scores=True, return_dict_in_generate=True, **settings).scores[0]
    plugin = wb.custom_generate(seed=3)
    token = int(generate(model, plugin, **settings)[0, -1])
    assert plugin.traces[0].tokens["p_sampled"][0] == pytest.approx(float(scores.softmax(-1)[0, token]), rel=1e-5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_rows_are_samples_of_one_seed(model, decoder):
    """Rows of one prompt differ; row i is the run with sample=i, and row 0 that of the seed alone."""
    rows = generate(model, wb.custom_generate(DECODERS[decoder](), seed=5), [LONG] * 3, do_sample=True, top_k=0)
    assert len({tuple(row) for row in rows[:, 11:].tolist()}) == 3
    for number, row in enumerate(rows[:, 11:].tolist()):
        own = {} if number == 0 else {"sample": number}
        alone = wb.decode(model, LONG, DECODERS[decoder](), max_new_tokens=7, temperature=1, seed=5, **own)
        assert row[: len(alone.token_ids)] == alone.token_ids
        assert alone.run["sample"] == number


def test_streamers_get_tokens_one_by_one_from_the_call_or_from_us(model):
    class Heard:
        def __init__(self):
            self.heard = []

        def put(self, value):
            self.heard.append(value.tolist())

        def end(self):
            self.heard.append("end")

    stock, ours, own = Heard(), Heard(), Heard()
    generate(model, rows=[LONG], streamer=stock)
    generate(model, wb.custom_generate(DECODERS["drafted"]()), rows=[LONG], streamer=ours)
    generate(model, wb.custom_generate(streamer=own), rows=[LONG])
    assert ours.heard == own.heard == stock.heard


def stateful():
    calls = []

    def counting(ids, scores):
        calls.append(1)
        return scores + len(calls)

    return counting


REFUSED = {
    "inputs_embeds": dict(inputs_embeds=torch.zeros(1, 3, 32), input_ids=None, attention_mask=None),
    "position_ids": dict(position_ids=torch.arange(11).repeat(3, 1) + 5),
    "right": dict(attention_mask=torch.tensor([[1] * 9 + [0] * 2] * 3)),
    "row 1 of the batch is empty": dict(attention_mask=torch.tensor([[1] * 11, [0] * 11, [1] * 11])),
    "past_key_values": dict(past_key_values=transformers.DynamicCache()),
    "cache_implementation": dict(cache_implementation="offloaded"),
    "prompt_lookup_num_tokens": dict(prompt_lookup_num_tokens=2),
    "guidance_scale": dict(guidance_scale=1.5),
    "penalty_alpha": dict(penalty_alpha=0.6, top_k=4),
    "max_new_tokens=60": dict(max_new_tokens=60),
    "counting is stateful": dict(logits_processor=[stateful()]),
    "eta_cutoff": dict(do_sample=True, eta_cutoff=0.1),
    "output_logits": dict(output_logits=True, return_dict_in_generate=True),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(model, name):
    plugin = wb.custom_generate()
    with pytest.raises(BadInput, match=name) as caught:
        generate(model, plugin, **REFUSED[name])
    assert "\n" not in str(caught.value) and plugin.traces == []


def test_an_assistant_is_refused_though_generate_keeps_it_back(model):
    with pytest.raises(BadInput, match="assistant_model"):
        generate(model, wb.custom_generate(), rows=[LONG], assistant_model=model)


def test_a_failing_processor_of_transformers_is_one_line(model):
    with pytest.raises(BadInput, match="PrefixConstrainedLogitsProcessor failed") as caught:
        generate(model, wb.custom_generate(), rows=[LONG], prefix_allowed_tokens_fn=lambda row, ids: [])
    assert "\n" not in str(caught.value)
