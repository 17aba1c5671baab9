"""One view of a trace for every front-end: a plain ES module, its stylesheet, and the data it draws.

`module()` is the module as text with a single export, `mount(element, options)`; `css()` its stylesheet; `payload()`
and `plain()` make the data. The parts of the module are files beside this one, joined in order: nothing is built,
nothing is fetched.
"""

import json
import re
from functools import cache
from pathlib import Path

from workbench.views.palette import HUES
from workbench.web.data import payload, plain, to_json

__all__ = ["FOLDER", "css", "glossary", "module", "page_css", "payload", "plain", "script", "to_json", "variables"]

FOLDER = Path(__file__).parent
PARTS = (
    "common.js", "record.js", "tracks.js", "map.js", "tracks/entropy.js", "tracks/drafts.js", "tracks/cache.js",
    "tracks/bits.js", "tracks/more.js", "token-view.js", "timeline.js", "transport.js", "tree.js", "phases.js",
    "table.js", "inspector.js", "view.js",
)  # fmt: skip
# what joins the module to a front-end, or acts on its page
SCRIPTS = (
    "app.js", "beside.js", "download.js", "opened.js", "page.js", "picture.js", "setup.js", "tour.js", "widget.js",
)  # fmt: skip
_IMPORT = re.compile(r"^import \{[^}]*\} from \"\.\.?/[\w-]+\.js\";\n", re.MULTILINE)
_WORD = re.compile(r'WORDS\["(.+?)"\]')
_BROKEN = re.compile(r"(?<=[{,(\[;])\n|\n(?=[}.?:&|])| (?==> )|(?<==>) ")  # ends of lines, spaces at arrows
_TIGHT = re.compile(r" ?(=>|[=!]==|&&|\|\||[=,?:;{}]) ?")  # spaces at signs, in lines without quotes
_SPARE = re.compile(r"^ +|^(?://.*)?\n| +// .*$", re.MULTILINE)  # indentation, comments


@cache
def module(export: bool = True) -> str:
    """The module as one text; without `export` its names are plain declarations, for the body of a function."""
    parts = (_SPARE.sub("", _IMPORT.sub("", (FOLDER / name).read_text(encoding="utf-8"))) for name in PARTS)
    joined = "\n".join(re.sub(r"^export (?=function|const)", "", part, flags=re.MULTILINE) for part in parts)
    words = {word: glossary()[word] for word in _WORD.findall(joined)}
    joined = "\n".join(line if set(line) & set("\"'`/") else _TIGHT.sub(r"\1", line) for line in joined.split("\n"))
    joined = _BROKEN.sub("", f"const WORDS = {json.dumps(words, ensure_ascii=False)};\n{joined}")
    return f"{joined}\nexport {{ mount }};\n" if export else joined


@cache
def glossary() -> dict[str, str]:
    """The product's words and what they mean, some of which tooltips show; `docs/glossary.md` is the same."""
    text = (FOLDER / "glossary.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^- \*\*(.+?)\*\* — (.+)$", text, re.MULTILINE))


def script(name: str) -> str:
    """One of `SCRIPTS` as text."""
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def css() -> str:
    """The stylesheet of the view."""
    return f".wb-view {{ {variables()} }}\n" + (FOLDER / "view.css").read_text(encoding="utf-8")


@cache
def page_css() -> str:
    """The stylesheet of the app's page, around the view."""
    sheets = (FOLDER / name for name in ("app.css", "charts.css"))
    return f":root {{ {variables()} }}\n" + "\n".join(one.read_text(encoding="utf-8") for one in sheets if one.exists())


def variables() -> str:
    """The palette as declarations of a stylesheet, `--wb-accepted: light-dark(…)`; `color-scheme` decides which."""
    return " ".join(f"--wb-{name}: light-dark({light}, {dark});" for name, (light, dark) in HUES.items())
