"""Fifty held-out prompts × 128 tokens on the embedded target in fp32: every lossless way to decode spells one text.

Greedy texts are those of `model.generate(do_sample=False)`; keyed texts at T = 0.8 are those of plain decoding with the
same seed. A prompt that differs is decoded again in float64, both ways: a numeric tie vanishes there, a bug does not.
"""

from functools import partial

import pytest
import torch

import workbench as wb

PROMPTS, LENGTH, CHUNKS = 50, 128, 10
KEYED = {"temperature": 0.8, "seed": 5}

ARMS = {
    "chain": wb.Speculative(),
    "copy": wb.Speculative(drafter=wb.CopySpec()),
    "tree": wb.Speculative(shape=wb.FixedTree((2, 2, 1, 1))),
}


def generate(lm, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy continuations by transformers itself, in one batch, up to and with the end of text."""
    eos = next(iter(lm.eos_ids))
    longest = max(map(len, prompts))
    ids = torch.tensor([[eos] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = lm.model.generate(ids, attention_mask=mask, max_new_tokens=LENGTH, do_sample=False, pad_token_id=eos)
    rows = [row[longest:].tolist() for row in out]
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def decode(lm, prompt: list[int], decoder=None, **settings) -> list[int]:
    return wb.decode(lm, prompt, decoder, max_new_tokens=LENGTH, level="off", **settings).token_ids


def branches(lm, prompt: list[int]):
    """decode(decoder, **settings) -> text, all from one prefill of target and draft: forks of one session."""
    start = wb.Session(lm, prompt, wb.Speculative(), max_new_tokens=LENGTH, level="off")
    start.step()

    def decode(decoder, **settings) -> list[int]:
        branch = start.fork(decoder=decoder, **settings)
        branch.run()
        return branch.trace.token_ids

    return decode


def in_double(wide, prompt: list[int], decoder, **settings) -> tuple[list[int], list[int]]:
    """The text expected of a prompt and the one that is decoded, by the model in float64."""
    expected = decode(wide, prompt, **settings) if settings else generate(wide, [prompt])[0]
    return expected, decode(wide, prompt, decoder, **settings)


def difference(arm: str, expected: list[int], found: list[int], again) -> str | None:
    """None where the texts are equal; else where they part, and whether float64 (`again(lm)` -> both) joins them."""
    if expected == found:
        return None
    at = next((k for k, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), "the end")
    theirs, ours = again(wb.load("embedded", dtype="float64"))
    return f"{arm} parts at token {at}: {'a numeric tie' if theirs == ours else 'IN FLOAT64 TOO'}"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_lossless_way_spells_one_text(lm, held_out, chunk):
    """Greedy: plain, chain, copied and tree. Keyed at T = 0.8: plain, and chain, copied or tree, prompt by prompt.

    `decode` the plain way, the others in forks.
    """
    prompts = [lm.tokenizer.encode(text) for text in held_out[chunk:PROMPTS:CHUNKS]]
    assert len(prompts) == PROMPTS // CHUNKS
    greedy = generate(lm, prompts)
    differences, sampled = [], []
    for number, (prompt, expected) in enumerate(zip(prompts, greedy, strict=True)):
        fork = branches(lm, prompt)
        sampled.append(fork(wb.Autoregressive(), **KEYED))
        differences.append(
            difference("greedy plain", expected, decode(lm, prompt), partial(in_double, prompt=prompt, decoder=None))
        )
        turn = list(ARMS)[(chunk + number) % len(ARMS)]
        for name, decoder in ARMS.items():
            for kind, text, settings in (("greedy", expected, {}), ("keyed", sampled[-1], KEYED)):
                if kind == "greedy" or name == turn:
                    again = partial(in_double, prompt=prompt, decoder=decoder, **settings)
                    differences.append(difference(f"{kind} {name}", text, fork(decoder, **settings), again))
    assert [line for line in differences if line] == []
    # the texts are worth comparing: full length as a rule, and no two alike
    assert sum(map(len, greedy)) > 64 * len(prompts)
    assert len({tuple(text) for text in greedy + sampled}) >= 2 * len(prompts) - 2


def test_the_prompts_are_fifty():
    assert len({row["prompt"] for row in wb.held_out_prompts(PROMPTS)}) == PROMPTS


def test_a_difference_is_told_apart_from_a_tie():
    """The comparison itself: equal texts pass; others are named by place, tie or not."""
    assert difference("x", [1, 2], [1, 2], None) is None
    assert difference("x", [1, 2], [1, 3], lambda wide: ([1], [1])) == "x parts at token 1: a numeric tie"
    assert difference("x", [1, 2], [1], lambda wide: ([1], [2])) == "x parts at token the end: IN FLOAT64 TOO"
