"""What a model gives and what members read of it are compared before any work; nothing asked for is ignored."""

import pytest

import workbench as wb
from workbench.engine.model import require
from workbench.errors import BadInput, Unsupported


@pytest.mark.parametrize("want", ["hidden", "exit", 1])
def test_a_model_refuses_what_it_does_not_give(want):
    toy = wb.ToyModel(vocab_size=4)
    with pytest.raises(BadInput, match="which 'toy-0' does not give"):
        toy.forward([1], [0], toy.new_store(), want=(want,))
    with pytest.raises(Unsupported, match="all of its layers or none"):
        toy.check_layers()
    with pytest.raises(Unsupported, match="no norm between its layers and its head"):
        _ = toy.final_norm


@pytest.mark.parametrize(
    ("decoder", "says"),
    [
        (lambda: wb.Speculative(wb.Medusa()), "drafter 'medusa' reads hidden states"),
        (lambda: wb.Speculative(wb.CopySpec(ngram=1), verifier=wb.Judge()), "verifier 'judge' reads hidden states"),
        (lambda: wb.Speculative(wb.Kangaroo(exits=(1,))), "drafter 'kangaroo' reads the states between layers"),
    ],
)
def test_members_that_read_what_a_model_lacks_are_refused_before_any_work(decoder, says, monkeypatch):
    toy = wb.ToyModel(vocab_size=4)
    monkeypatch.setattr(toy, "forward", lambda *_, **__: pytest.fail("a forward ran"))
    with pytest.raises(BadInput, match=says):
        wb.Session(toy, [1, 2], decoder())


def test_logits_are_given_by_every_model():
    require(wb.ToyModel(vocab_size=4), "somebody", ("logits",))
    assert not wb.ToyModel(vocab_size=4).gives
