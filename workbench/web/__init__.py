"""One view of a trace for every front-end: a plain ES module, its stylesheet, and the data it draws.

`module()` is the module as text with a single export, `mount(element, options)`; `css()` its stylesheet; `payload()`
and `plain()` make the data. The parts of the module are files beside this one, joined in order: nothing is built,
nothing is fetched.
"""

import json
import re
from functools import cache
from pathlib import Path

from workbench.web.data import payload, plain, to_json

__all__ = ["FOLDER", "css", "glossary", "module", "payload", "plain", "script", "to_json"]

FOLDER = Path(__file__).parent
PARTS = ("common.js", "record.js", "token-view.js", "timeline.js", "inspector.js", "transport.js", "trace-view.js")
SCRIPTS = ("app.js", "download.js", "keys.js", "widget.js")  # what joins the module to a front-end, or acts on its page
_IMPORT = re.compile(r"^import \{[^}]*\} from \"\./[\w-]+\.js\";\n", re.MULTILINE)


@cache
def module(export: bool = True) -> str:
    """The module as one text; without `export` its names are plain declarations, for the body of a function."""
    parts = (_IMPORT.sub("", (FOLDER / name).read_text(encoding="utf-8")) for name in PARTS)
    joined = "\n".join(re.sub(r"^export (?=function|const)", "", part, flags=re.MULTILINE) for part in parts)
    joined = f"const WORDS = {json.dumps(glossary(), ensure_ascii=False)};\n{joined}"
    return f"{joined}\nexport {{ mount }};\n" if export else joined


@cache
def glossary() -> dict[str, str]:
    """The product's words and what they mean, which tooltips show; `docs/glossary.md` is the same."""
    text = (FOLDER / "glossary.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^- \*\*(.+?)\*\* — (.+)$", text, re.MULTILINE))


def script(name: str) -> str:
    """One of `SCRIPTS` as text."""
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def css() -> str:
    """The stylesheet of the view."""
    return (FOLDER / "trace-view.css").read_text(encoding="utf-8")
