"""The product speaks the field's language: private words of 0.1 stand in the table of old names and nowhere else."""

import re
import subprocess

import pytest

from tests.size import ROOT
from workbench import web

OLD = (
    "law", "laws", "lane", "lanes", "keyed", "RoundLog", "coupled", "shelf", "shelves", "shelve", "seal", "seals",
    "sealed", "conclude", "appraise", "own_law", "faces", "gram", "draft_store",
)  # fmt: skip
MAY = ("workbench/aliases.py", "docs/migrating.md", "CHANGELOG.md", "tests/unit/test_words.py", "workbench/pretrained/")
OF_OLD = (
    "workbench/trace/schema_1.py",
    "tests/unit/trace/",
    "tests/unit/test_aliases.py",
    "tests/hostile/",
)  # traces and names of 0.1
KINDS = ("*.py", "*.md", "*.js", "*.css", "*.ipynb", "*.toml")


def test_no_private_word_is_left():
    listed = subprocess.run(
        ["git", "ls-files", *KINDS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(listed) > 300
    pattern = re.compile(rf"(?<![\w/-])(?:{'|'.join(OLD)})(?![\w-])", re.IGNORECASE)
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name in listed
        if not name.startswith(MAY + OF_OLD)
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_the_glossary_has_a_short_line_for_every_word():
    lines = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Glossary" and len(lines) <= 60
    assert [f"- **{word}** — {meaning}" for word, meaning in web.glossary().items()] == lines[1:]
    assert all(len(line) <= 120 and line.endswith(".") for line in lines[1:])


@pytest.mark.parametrize("word", ["surprisal", "margin", "entropy", "entropy, sampled"])
def test_tooltips_say_what_the_glossary_says(word):
    assert web.glossary()[word] in web.module() and f'"{word}"' in (web.FOLDER / "inspector.js").read_text()
