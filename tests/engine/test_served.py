"""The README's table of architectures is what a tiny model of each really does."""

import pytest

from tests.engine.served import ARCHITECTURES, README, block, outcome, table


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_gives_the_text_of_generate_or_says_why_not(name):
    """`outcome` fails where a text differs, and where anything but Unsupported is raised."""
    said = outcome(name)
    assert said == "served" or (said.startswith("refused: ") and 20 < len(said) < 300 and "|" not in said)


def test_the_readme_holds_this_table():
    text = README.read_text(encoding="utf-8")
    start, end = block(text)
    assert text[start:end].strip() == table(), "run `python -m tests.engine.served --write`"
    assert text[start:end].count("| served |") > 20 and text[start:end].count("| refused: ") > 5
