"""A capsule: everything in one file, nothing from a network, all text inert, and the trace comes back whole."""

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

import workbench as wb
from tests.web.conftest import HOSTILE
from workbench import cli, web
from workbench.errors import BadInput, BadTrace
from workbench.report.capsule import capsule_of
from workbench.report.headline import run_line


class Page(HTMLParser):
    """Tags, attributes, and the content of scripts and styles, as a browser would find them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.contents: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.contents.append("")
        self.inside = tag in ("script", "style")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.contents[-1] += data

    def all(self, tag: str) -> list[tuple[dict, str]]:
        return [(a, text) for (name, a), text in zip(self.tags, self.contents, strict=True) if name == tag]


def test_a_capsule_gives_the_trace_back(speculative, tmp_path):
    path = speculative.capsule(tmp_path / "run.html")
    for back in (wb.Trace.load(path), wb.open_capsule(path)):
        assert back.log == speculative.log and not back.dropped
        assert back.tokens.equals(speculative.tokens) and back.summary() == speculative.summary()


def test_512_speculative_tokens_stay_small(speculative):
    assert len(speculative.tokens) == 512 and speculative.summary()["num_draft_tokens"] > 400
    assert len(capsule_of(speculative).encode()) <= 350_000


def test_nothing_is_fetched_and_only_the_hashed_code_runs(speculative):
    text = capsule_of(speculative)
    page = Page(text)
    (policy,) = [a["content"] for a, _ in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
    scripts = [content for a, content in page.all("script") if a.get("type") == "module"]
    styles = [content for _, content in page.all("style")]
    assert (len(scripts), len(styles)) == (1, 1)
    for content in (*scripts, *styles):
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy
    assert base64.b64encode(hashlib.sha256(f"{scripts[0]} ".encode()).digest()).decode() not in policy
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "base", "form", "a"}
    assert not any(name in a for _, a in page.tags for name in ("src", "href", "srcset", "action"))
    own = text.replace("http-equiv", "")
    assert "https://" not in re.sub(r"<(pre|script type=\"application).*?</(pre|script)>", "", own, flags=re.DOTALL)


def test_hostile_texts_are_inert(hostile):
    text = capsule_of(hostile, title=HOSTILE, note=HOSTILE)
    page = Page(text)
    assert len(page.all("script")) == 3 and "<!--" not in text
    assert not any("\u2028" in content for _, content in page.all("script"))
    assert not page.all("img") and not any("onerror" in attributes for _, attributes in page.tags)
    (packed,) = [content for a, content in page.all("script") if a.get("id") == "workbench-data"]
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert data["line"] and data["badge"]["text"] and data == {**web.payload(hostile), **run_line(hostile)}
    assert data["tokens"]["text"][0] == HOSTILE and HOSTILE in data["prompt"] and data["id"] == HOSTILE
    assert text.count("<title>") == 1 and HOSTILE not in text


def test_the_page_tells_settings_models_and_provenance(speculative):
    text = capsule_of(speculative)
    for fact in (
        "drafter.model",
        "embedded-draft",
        "shape.length",
        "temperature",
        "0.8",
        "fingerprint",
        "torch",
        "seed",
    ):
        assert fact in text
    assert f'<th scope="row">tokens</th><td>{speculative.summary()["tokens"]}</td>' in text


def test_a_cache_and_forced_tokens_are_said_in_words(managed):
    """Nothing nested is written as Python writes it."""
    log = [{**managed.log[0], "forced": {"4": 288, "5": 758}}, *managed.log[1:]]
    text = capsule_of(wb.Trace(log))
    for name, value in (("cache.policy", "h2o"), ("cache.policy.budget", "96"), ("cache.quantizer.bits", "4"),
                        ("forced", "token 4 to id 288, token 5 to id 758")):  # fmt: skip
        assert f'<th scope="row">{name}</th><td>{value}</td>' in text
    assert "{&#x27;" not in text


def test_the_same_trace_gives_the_same_page(tree):
    assert capsule_of(tree) == capsule_of(tree)


def test_a_run_without_tokens_has_a_page(tree, tmp_path):
    empty = wb.Trace(tree.log[:1])
    assert wb.Trace.load(empty.capsule(tmp_path / "empty.html")).log == empty.log


def test_damaged_and_other_files_are_refused_in_one_line(tree, tmp_path):
    path = tree.capsule(tmp_path / "run.html")
    page = path.read_text(encoding="utf-8")
    place = page.index('id="workbench-trace">') + 200
    broken = {"cut.html": page[:place], "changed.html": f"{page[:place]}AAAA{page[place + 4 :]}",
              "other.html": "<!doctype html><p>hello</p>"}  # fmt: skip
    for name, content in broken.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(BadTrace, match=f"{name} .*trace.capsule") as error:
            wb.Trace.load(tmp_path / name)
        assert "\n" not in str(error.value)
    tree.save(tmp_path / "run.wb")
    with pytest.raises(BadTrace, match="not a capsule"):
        wb.open_capsule(tmp_path / "run.wb")
    with pytest.raises(BadInput, match="cannot read"):
        wb.open_capsule(tmp_path / "none.html")
    with pytest.raises(BadInput, match="cannot write"):
        tree.capsule(tmp_path / "no" / "folder.html")
    assert not list(tmp_path.glob(".*"))


def test_the_command_line_makes_and_shows_capsules(tree, tmp_path, capsys):
    tree.save(tmp_path / "run.wb")
    said = ["--title", "A <b>run</b>", "--note", "Look at token 3."]
    assert cli.main(["capsule", str(tmp_path / "run.wb"), "-o", str(tmp_path / "x.html"), *said]) == 0
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "A &lt;b&gt;run&lt;/b&gt;" in page and '<p class="note">Look at token 3.</p>' in page
    assert cli.main(["capsule", str(tmp_path / "run.wb")]) == 0 and (tmp_path / "run.html").exists()
    assert cli.main(["capsule", str(tmp_path / "run.wb")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["show", str(tmp_path / "run.html")]) == 0
    shown = capsys.readouterr().out
    assert cli.main(["show", str(tmp_path / "run.wb")]) == 0 and capsys.readouterr().out == shown
