"""What a newcomer opens first: the README's six lines run, its links lead somewhere, the gallery's capsules open."""

import base64
import gzip
import html
import json
import re

import pytest

import workbench as wb
from tests.unit.test_project import NOTEBOOKS, ROOT
from workbench.trace import SCHEMA

GALLERY = ROOT / "docs" / "gallery"
CAPSULES = sorted(GALLERY.glob("*.html"))


def read(path) -> str:
    return path.read_text(encoding="utf-8")


README, INDEX = read(ROOT / "README.md"), read(GALLERY / "README.md")


def first_links(index: str) -> list[str]:
    """What the rows of an index link to first."""
    return re.findall(r"^\| \[[^]]*\]\(([^)]+)\)", index, flags=re.MULTILINE)


def test_the_six_lines_run_as_they_stand(tmp_path, monkeypatch):
    lines = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    assert len([line for line in lines.splitlines() if line]) == 6
    monkeypatch.chdir(tmp_path)
    exec(compile(lines, "README.md", "exec"), names := {})
    assert wb.Trace.load("run.html").text == names["trace"].text


def test_links_into_the_reference_lead_to_a_heading():
    """By GitHub's rule for anchors: small letters, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", read(ROOT / "docs" / "reference.md"), flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    linked = set(re.findall(r"docs/reference\.md#([^)]+)", README))
    assert len(linked) > 50 and linked <= anchors


def test_the_indexes_name_every_notebook_and_capsule():
    assert first_links(read(ROOT / "notebooks" / "README.md")) == [path.name for path in NOTEBOOKS]
    assert sorted(first_links(INDEX)) == [path.name for path in CAPSULES]
    assert {"docs/gallery/README.md", "notebooks/README.md"} <= set(re.findall(r"\]\(([^)]+)\)", README))


@pytest.mark.parametrize("path", CAPSULES, ids=lambda path: path.stem)
def test_the_gallery_opens_and_says_what_to_look_for(path):
    """Of the current schema as it stands in the file: an older one would be translated when it is read."""
    page, trace = read(path), wb.open_capsule(path)
    assert not trace.dropped and len(trace.tokens) and trace.run["models"][0]["name"] == "embedded"
    packed = re.search(r'id="workbench-trace">([^<]+)<', page)[1]
    assert json.loads(gzip.decompress(base64.b64decode(packed)).splitlines()[0])["schema"] == SCHEMA
    (row,) = [row for row in INDEX.splitlines() if path.name in row]
    title, look = (html.escape(found) for found in re.match(r"\| \[(.*?)\]\(.*?\) \| (.*?) \|", row).groups())
    assert f"<h1>{title}</h1>" in page and f'<p class="note">{look}</p>' in page


def test_the_gallery_is_small():
    sizes = [path.stat().st_size for path in CAPSULES]
    assert len(sizes) >= 5 and max(sizes) <= 350_000 and sum(sizes) <= 1_200_000
