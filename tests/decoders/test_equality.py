"""Fifty held-out prompts × 128 tokens on the embedded target in fp32: every lossless way to decode spells one text.

Greedy texts are those of `model.generate(do_sample=False)`; seeded texts at T = 0.8 are those of plain decoding with
the same seed. What differs is a near-tie by the rule of `tests/rounding.py`, or a bug.
"""

from functools import partial

import pytest
import torch

import workbench as wb
from tests.rounding import MARGIN, Texts

PROMPTS, LENGTH, CHUNKS = 50, 128, 10
SEEDED = {"temperature": 0.8, "seed": 5}
TEXTS = Texts()

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


def in_double(prompt: list[int], *ways) -> tuple[list[int], ...]:
    """The texts of the model in float64: each way takes the model and a prompt."""
    wide = wb.load("embedded", dtype="float64")
    return tuple(way(wide, prompt) for way in ways)


@torch.inference_mode()
def two_bodies(lm, prompt: list[int], text: list[int]) -> float:
    """The margin below which transformers' forward and ours, which round differently, may part on a text.

    Twice the largest difference of their log-probabilities; at least the usual one, at most ten times it.
    """
    ids = prompt + text
    theirs = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    ours = lm.forward(ids, range(len(ids)), lm.new_store()).logits.log_softmax(-1)
    return min(max(MARGIN, 2 * (theirs - ours).abs().max().item()), 10 * MARGIN)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_lossless_way_spells_one_text(lm, held_out, chunk):
    """Greedy: plain, chain, copied and tree. Seeded at T = 0.8: plain, and chain, copied or tree, prompt by prompt.

    `decode` the plain way, the others in forks.
    """
    prompts = [lm.tokenizer.encode(text) for text in held_out[chunk:PROMPTS:CHUNKS]]
    assert len(prompts) == PROMPTS // CHUNKS
    generated, texts = generate(lm, prompts), []
    for number, (prompt, expected) in enumerate(zip(prompts, generated, strict=True)):
        fork, turn = branches(lm, prompt), list(ARMS)[(chunk + number) % len(ARMS)]
        greedily, seeded = partial(decode, lm, prompt), partial(fork, wb.Autoregressive(), **SEEDED)
        greedy, sampled = greedily(), seeded()
        texts += [greedy, sampled]
        limit = MARGIN if greedy == expected else two_bodies(lm, prompt, greedy)
        again = partial(in_double, prompt, decode, lambda wide, prompt: generate(wide, [prompt])[0])
        TEXTS.same("generate", greedily, lambda text=expected: text, again, expected=greedy, limit=limit)
        for name, decoder in ARMS.items():
            for plain, text, settings in ((greedily, greedy, {}), (seeded, sampled, SEEDED)):
                if not settings or name == turn:
                    again = partial(
                        in_double, prompt, *(partial(decode, decoder=d, **settings) for d in (None, decoder))
                    )
                    found = partial(fork, decoder, **settings)
                    TEXTS.same(f"{name} of prompt {chunk + CHUNKS * number}", plain, found, again, expected=text)
    # the texts are worth comparing: full length as a rule, and no two alike
    assert sum(map(len, generated)) > 64 * len(prompts)
    assert len(set(map(tuple, texts))) >= 2 * len(prompts) - 2


def test_few_texts_were_forgiven():
    TEXTS.assert_few()


def test_the_prompts_are_fifty():
    assert len({row["prompt"] for row in wb.held_out_prompts(PROMPTS)}) == PROMPTS
