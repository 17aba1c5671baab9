"""A text edited in its cache beside the same text read anew: what is read, how long it takes, how far it is off.

    python benchmarks/editing.py [--model smollm2] [--tokens 800] [--threads 2] [--out FILE]

The text is Python source of the standard library, cut to a length. Every edit is what a programmer does to it. A row
says how many tokens were read, the time to the next token, both against reading everything, bytes of keys kept beside
the cache, and, over 48 tokens decoded greedily behind the edit, the mean KL divergence from the distributions of the
text read anew and the share of tokens that it would have taken, too.
"""

import inspect
import textwrap
import time
from collections.abc import Callable

import torch

import workbench as wb
from benchmarks.runs import finish, options

NEW = 48  # tokens behind an edit
EDITS: dict[str, Callable[[str], str]] = {
    "a comment at the start": lambda text: "# wrap paragraphs of text\n" + text,
    "a line deleted in the middle": lambda text: _without(text, len(text.splitlines()) // 2),
    "a line written in the middle": lambda text: _with(text, len(text.splitlines()) // 2, "    # keep the indent\n"),
    "a name changed where it is defined": lambda text: text.replace("TextWrapper", "Paragraphs", 1),
    "a name changed everywhere": lambda text: text.replace("width", "columns"),
}


def _without(text: str, line: int) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(lines[:line] + lines[line + 1 :])


def _with(text: str, line: int, new: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join([*lines[:line], new, *lines[line:]])


def measure(lm, text: str, change: Callable[[str], str]) -> dict:
    """One edit, as a row."""
    session = wb.Session(lm, text, max_new_tokens=NEW, level="full")
    session.step()
    session.jump(0)
    times = {}
    branch = session.edit(change(text))
    for name, one in (("edited", branch), ("anew", branch.recomputed())):
        start = time.perf_counter()
        one.step()
        times[name] = time.perf_counter() - start
    branch.run()
    anew = branch.recomputed(force=dict(enumerate(branch.trace.token_ids)))
    anew.run()
    read, whole = (int(one.trace.forwards.query("phase == 'prefill'")["rows"].sum()) for one in (branch, anew))
    notes = branch.trace.cache.query("round == 1")["note"].sum()
    ranks = anew.trace.tokens["rank"]
    return {
        "tokens": len(branch.prompt_ids),
        "blocks_kept": len(branch.trace.run["edited"]["kept"]),
        "tokens_read": read,
        "tokens_read_anew": whole,
        "ms_to_token": 1000 * times["edited"],
        "ms_to_token_anew": 1000 * times["anew"],
        "bytes_of_turned_keys": int(notes),
        "kl_nats": anew.trace.divergence(branch.trace),
        "same_token": float((ranks == 1).mean()),
    }


def main() -> None:
    given = options(__doc__, model="embedded", tokens=800, threads=2).parse_args()
    torch.set_num_threads(given.threads)
    lm = wb.load(given.model)
    ids = lm.tokenizer.encode(inspect.getsource(textwrap))[: given.tokens]
    text = lm.tokenizer.decode(ids, skip_special_tokens=True)
    measure(lm, text, EDITS["a comment at the start"])  # warm
    rows = [{"edit": name, **measure(lm, text, change)} for name, change in EDITS.items()]
    finish(lm, rows, given.out, model=given.model)


if __name__ == "__main__":
    main()
