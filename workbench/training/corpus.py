"""The corpus of the embedded models: the Python standard library's own source, split by module.

`corpus.txt` beside this file lists every file used, its SHA-256 (first 16 hex digits) and its split, for the Python
version named in its first line. Another Python's library differs in a few files: `documents` then says which, and
goes on only if asked to.

    python -m workbench.training.corpus          # writes corpus.txt and prompts.jsonl from the running Python
"""

import ast
import hashlib
import json
import platform
import sysconfig
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).parent.parent / "pretrained"
LISTING = HERE / "corpus.txt"
PROMPTS = HERE / "prompts.jsonl"

HELD_OUT = (
    "bisect", "calendar", "cmd", "colorsys", "configparser", "csv", "fractions", "graphlib", "heapq", "netrc",
    "numbers", "sched", "shlex", "statistics", "string", "textwrap", "tomllib", "wave",
)  # fmt: skip
EXCLUDED = (
    "site-packages/", "pydoc_data/", "lib2to3/tests/data/", "test/bad", "test/encoded_modules/", "idlelib/Icons",
)  # fmt: skip


def split_of(path: str) -> str:
    """`held-out` for the modules of HELD_OUT and their tests, `train` for everything else."""
    parts = path.removesuffix(".py").split("/")
    names = {part.removeprefix("test_") for part in parts}
    return "held-out" if names & set(HELD_OUT) else "train"


def scan(root: Path) -> list[tuple[str, str, str]]:
    """(path, digest, split) of every usable source file under `root`; character tables are left out."""
    rows = []
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).as_posix()
        data = file.read_bytes()
        table = path.startswith("encodings/") and b"decoding_table" in data
        with suppress(UnicodeDecodeError):
            if data.decode("utf-8").strip() and not table and not path.startswith(EXCLUDED):
                rows.append((path, _digest(data), split_of(path)))
    return rows


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def documents(split: str, strict: bool = True) -> list[str]:
    """The texts of one split, in listing order.

    Raises FileNotFoundError when `strict` and the running Python's library is not the listed one.
    """
    header, *lines = LISTING.read_text().splitlines()
    texts, differing = [], []
    for line in lines:
        digest, where, path = line.split(maxsplit=2)
        file = library() / path
        data = file.read_bytes() if file.exists() else b""
        if _digest(data) != digest:
            differing.append(path)
        if where == split and data:
            texts.append(data.decode("utf-8", errors="replace"))
    if differing and strict:
        raise FileNotFoundError(
            f"{len(differing)} of {len(lines)} corpus files differ from the listing ({differing[0]}, …); "
            f"expected {header.lstrip('# ')}; run with that version, or allow the difference with --any-python"
        )
    return texts


def stubs(limit: int = 120) -> list[dict]:
    """Function stubs from held-out modules: the text before a function's body, with up to 40 lines of context."""
    rows = []
    for path in (path for path, _, split in scan(library()) if split == "held-out"):
        text = (library() / path).read_text()
        lines = text.splitlines(keepends=True)
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef) or node.end_lineno - node.lineno < 8:
                continue
            first = node.body[0]
            docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            cut = first.end_lineno if docstring else first.lineno - 1
            prompt = "".join(lines[max(0, node.lineno - 41) : cut]).rstrip()  # a line break belongs to what indents
            if first.lineno > node.lineno and 200 <= len(prompt) <= 4000:
                body = "\n" + "".join(lines[cut : node.end_lineno])
                rows.append({"id": f"{path}:{node.lineno}:{node.name}", "prompt": prompt, "reference": body})
    return sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())[:limit]


def main() -> None:
    rows = scan(library())
    lines = [f"# Python {platform.python_version()} standard library"]
    lines += [f"{digest} {split} {path}" for path, digest, split in rows]
    LISTING.write_text("\n".join(lines) + "\n")
    PROMPTS.write_text("".join(json.dumps(row) + "\n" for row in stubs()))
    print(f"{len(rows)} files listed, {sum(row[2] == 'held-out' for row in rows)} held out")


if __name__ == "__main__":
    main()
