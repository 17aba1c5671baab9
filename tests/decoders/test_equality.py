"""Fifty held-out prompts × 128 tokens on the embedded target in fp32: every lossless way to decode spells one text.

Greedy texts are those of `model.generate(do_sample=False)`; keyed texts at T = 0.8 are those of plain decoding with the
same seed. A prompt that differs is decoded again in float64, both ways: a numeric tie vanishes there, a bug does not.
"""

import pytest
import torch

import workbench as wb

PROMPTS, LENGTH, CHUNKS = 50, 128, 5
TEMPERATURE, SEED = 0.8, 5

ARMS = {
    "chain": wb.Speculative(),
    "tree": wb.Speculative(shape=wb.FixedTree((2, 2, 1, 1))),
    "copy": wb.Speculative(drafter=wb.CopySpec()),
}


def generate(lm, prompts: list[str]) -> list[list[int]]:
    """Greedy continuations by transformers itself, up to and with the end of text."""
    lm.tokenizer.padding_side = "left"
    eos = next(iter(lm.eos_ids))
    texts = [lm.tokenizer.encode(prompt) for prompt in prompts]
    longest = max(map(len, texts))
    ids = torch.tensor([[eos] * (longest - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    out = lm.model.generate(ids, attention_mask=mask, max_new_tokens=LENGTH, do_sample=False, pad_token_id=eos)
    rows = [row[longest:].tolist() for row in out]
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


@pytest.fixture(scope="module")
def double():
    """The embedded pair in float64, loaded only where something differs."""
    return lambda: wb.load("embedded", dtype="float64")


@pytest.fixture(scope="module", params=range(CHUNKS))
def chunk(request, held_out, lm):
    """Ten prompts with their greedy and keyed texts."""
    prompts = held_out[request.param : PROMPTS : CHUNKS]
    keyed = [decode(lm, prompt, None, temperature=TEMPERATURE, seed=SEED) for prompt in prompts]
    return prompts, generate(lm, prompts), keyed


def decode(lm, prompt: str, decoder, **settings) -> list[int]:
    return wb.decode(lm, prompt, decoder, max_new_tokens=LENGTH, level="off", **settings).token_ids


def compare(prompts, expected, found, again) -> None:
    """All equal; else name the prompts, and whether float64 (`again(prompt)` -> both texts) makes them equal."""
    differing = [i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b]
    lines = []
    for i in differing:
        theirs, ours = again(prompts[i])
        at = next((k for k, (a, b) in enumerate(zip(expected[i], found[i], strict=False)) if a != b), "the end")
        lines.append(f"prompt {i} at token {at}: {'a numeric tie' if theirs == ours else 'DIFFERS IN FLOAT64 TOO'}")
    assert not lines, "; ".join(lines)


def test_the_prompts_are_fifty():
    assert len(wb.held_out_prompts()) >= PROMPTS
    assert len({row["prompt"] for row in wb.held_out_prompts(PROMPTS)}) == PROMPTS


@pytest.mark.parametrize("name", ["autoregressive", *ARMS])
def test_greedy_text_is_that_of_generate(name, chunk, lm, double):
    prompts, greedy, _ = chunk
    decoder = ARMS.get(name)

    def again(prompt):
        wide = double()
        return generate(wide, [prompt])[0], decode(wide, prompt, decoder)

    compare(prompts, greedy, [decode(lm, prompt, decoder) for prompt in prompts], again)


@pytest.mark.parametrize("name", ARMS)
def test_keyed_text_is_that_of_plain_decoding(name, chunk, lm, double):
    prompts, _, keyed = chunk
    settings = {"temperature": TEMPERATURE, "seed": SEED}

    def again(prompt):
        wide = double()
        return decode(wide, prompt, None, **settings), decode(wide, prompt, ARMS[name], **settings)

    compare(prompts, keyed, [decode(lm, prompt, ARMS[name], **settings) for prompt in prompts], again)
    assert len({tuple(text) for text in keyed}) == len(prompts)


def test_the_batch_of_references_is_not_trivial(chunk):
    """Texts differ from each other, and sampled ones from greedy ones."""
    prompts, greedy, keyed = chunk
    assert len({tuple(text) for text in greedy}) >= len(prompts) - 1
    assert sum(a != b for a, b in zip(greedy, keyed, strict=True)) >= len(prompts) - 1
    assert sum(map(len, greedy)) > 64 * len(prompts)
