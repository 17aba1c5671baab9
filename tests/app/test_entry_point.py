"""A decoder of another package appears everywhere, with no other edit."""

import workbench as wb
from tests.app.visitor import Visitor
from workbench import declare
from workbench.cli import main


def test_a_decoder_from_an_entry_point_is_one_like_any_other(outside, capsys):
    assert main(["list", "decoders"]) == 0
    assert "always             Writes the same token for ever." in capsys.readouterr().out
    assert main(["list", "decoders", "always"]) == 0
    assert "int in [0, 50]" in capsys.readouterr().out

    lm = wb.load("embedded")
    words = ["run", "def f(x):", "--decoder", outside, "--set", "token=9", "--max-new-tokens", "3", "--quiet"]
    assert main(words) == 0
    assert capsys.readouterr().out == lm.tokenizer.decode([9, 9, 9]) + "\n"
    assert main([*words[:5], "token=51"]) == 2
    assert "expected an integer in [0, 50], got 51" in capsys.readouterr().err

    session = wb.Session(lm, "def f(x):", declare.build("decoder", outside), max_new_tokens=3)
    assert [event["tokens"]["token_id"] for event in session] == [[7]] * 3
    session.back()
    assert session.fork(token=8).step()["tokens"]["token_id"] == [7]  # it does not heed what is forced; still a branch

    from workbench.dashboard import build_app

    visitor = Visitor(build_app(), "entry-point")
    choices = visitor.app.blocks[visitor.find("decoder")].choices
    assert (outside, outside) in choices
    slider = visitor.app.blocks[visitor.find("token", "id of the token")]
    assert (slider.minimum, slider.maximum, slider.value) == (0, 50, 7)
    visitor.shown[slider._id] = 11
    visitor.start(tokens=2, decoder=outside, prompt="def f(x):")
    visitor.fire("step")
    assert visitor.text == lm.tokenizer.decode([11])
