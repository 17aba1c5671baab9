"""What the embedded models can do, on held-out text: predict it, agree with each other, and copy from far back."""

import pytest
import torch

import workbench as wb


@pytest.fixture(scope="module")
def text(lm, held_out) -> list[int]:
    """Held-out prompts as one stream of token ids."""
    return [token for prompt in held_out for token in lm.tokenizer.encode(prompt)]


def scores(model, ids: list[int]) -> torch.Tensor:
    """[n, V] teacher-forced logits through the engine."""
    return model.forward(ids, range(len(ids)), model.new_store()).logits


def test_the_models_predict_held_out_text_and_agree(lm, text):
    """The cards say 2.4 nats and 60 % on other windows; a damaged or mismatched file would be far off."""
    draft = wb.load("embedded-draft")
    loss, hits = 0.0, 0.0
    windows = [text[i : i + 512] for i in range(0, 8 * 512, 512)]
    for ids in windows:
        ours, theirs = scores(lm, ids), scores(draft, ids)
        loss += torch.nn.functional.cross_entropy(ours[:-1], torch.tensor(ids[1:])).item() / len(windows)
        hits += (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item() / len(windows)
    assert loss < 2.7
    assert hits > 0.5


@pytest.mark.parametrize("distance", [128, 1024, 1536])
def test_the_target_copies_from_far_back(lm, text, distance):
    """A shuffled span of 64 tokens is told, from its 33rd token on, by its first occurrence alone."""
    draw = torch.Generator().manual_seed(distance)
    found, control = 0.0, 0.0
    for start in range(0, 6 * 700, 700):
        body = text[start : start + distance + 64]
        span = [body[i] for i in torch.randperm(64, generator=draw)]
        other = [body[64 + i] for i in torch.randperm(64, generator=draw)]
        for place, first in enumerate((span, other)):
            guess = scores(lm, [*first, *body[64:distance], *span])[-33:-1].argmax(-1)
            share = (guess == torch.tensor(span[32:])).float().mean().item() / 6
            found, control = (found + share, control) if place == 0 else (found, control + share)
    assert control < 0.2, "the span can be guessed without copying: this test shows nothing"
    assert found > 0.5
