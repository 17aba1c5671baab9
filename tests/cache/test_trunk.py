"""What several sequences share lies in one place, and each reads it as if it were its own."""

import copy

import pytest
import torch
import transformers as tf

import workbench as wb
from tests.cache.conftest import SIZES, TERMS, feed, strong
from tests.rounding import close
from workbench.models.adapter import wrap

LONG = [(5 * i * i + 3 * i) % 11 for i in range(150)]  # long enough for a trunk


@pytest.mark.parametrize("window", [None, 24])
def test_trunks_of_any_lineage_are_the_tokens_themselves(small, sliding_wide, window):
    """Stores forked, shared and fed at random, read together: logits of each are those of a store fed alone."""
    lm = small if window is None else sliding_wide
    generator = torch.Generator().manual_seed(1)
    root = lm.new_store()

    def draw(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    with torch.inference_mode():
        feed(lm, root, LONG)
        held = [(root, list(LONG))]
        for turn in range(14):
            store, text = held[draw(len(held))]
            if turn % 2:
                store.share()
            fork, more = store.fork(), [draw(11) for _ in range(1 + draw(90))]
            feed(lm, fork, more)
            held.append((fork, text + more))
            if turn % 3 == 2:
                held.pop(draw(len(held)))
        assert max(len(store.trunk) for store, _ in held) > 1
        requests = [wb.engine.model.ForwardRequest([1, 2], range(len(text), len(text) + 2), store)
                    for store, text in held]  # fmt: skip
        outs = lm.forward_many(requests)
        for (store, text), out in zip(held, outs, strict=True):
            store.discard()
            lone = lm.new_store()
            feed(lm, lone, text)
            expected = lm.forward([1, 2], range(len(text), len(text) + 2), lone).logits
            assert close(out.logits, expected, TERMS) and store.length == len(text)
            assert close(lm.forward([1, 2], range(len(text), len(text) + 2), store).logits, expected, TERMS)
            store.discard()


@pytest.fixture(scope="module")
def sliding_wide():
    shape = copy.deepcopy(SIZES) | {"sliding_window": 24}
    return wrap(strong(tf.MistralForCausalLM(tf.MistralConfig(**shape))))


def test_a_trunk_that_is_left_out_shows(small, monkeypatch):
    """Negative control."""
    from workbench.engine import attention

    honest = wb.decode(small, LONG, n=3, temperature=1.0, max_new_tokens=8)
    monkeypatch.setattr(attention.segment_attention, "merge", lambda outs, lses: (outs[1], lses[1]))
    wrong = wb.decode(small, LONG, n=3, temperature=1.0, max_new_tokens=8)
    assert [t.token_ids for t in honest] != [t.token_ids for t in wrong]
