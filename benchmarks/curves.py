"""How a forward's time grows: of one row with the text before it, and with the rows it reads, by the body that runs it.

    python benchmarks/curves.py [--model embedded] [--threads 1] [--repeats 20] [--out FILE] [--figure FILE.html]

Forwards alone, behind a store, all bodies in turn; medians. Rows are read behind 128 tokens, as drafts of a chain are.
"""

import statistics
from pathlib import Path

import torch
from tqdm import tqdm

import workbench as wb
from benchmarks.device import clock
from benchmarks.runs import finish, ids, options
from workbench.models.adapter import TransformersModel
from workbench.models.fast import FastBody
from workbench.models.native import NativeBody

BODIES = {"stock": (), "torch": (FastBody,), "compiled": (NativeBody,)}
CONTEXTS = (16, 64, 128, 256, 512, 1024, 1536, 1920, 3072, 4096)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
BEHIND = 128


def stores(lm: TransformersModel, text: list[int], lengths: list[int]) -> dict[int, object]:
    """A store of each length, forks of one that grows."""
    found, store = {}, lm.new_store()
    for length in lengths:
        for start in range(store.length, length, 512):
            end = min(length, start + 512)
            lm.forward(text[start:end], range(start, end), store, logits_at=())
            store.commit(range(end - start))
        found[length] = store.fork()
    return found


def main() -> None:
    parser = options(__doc__, model="embedded", threads=1, repeats=20)
    parser.add_argument("--figure", type=Path, help="write a Plotly figure here, as HTML")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    loaded = wb.load(given.model)
    (text,) = ids(loaded, 1, max(CONTEXTS))
    contexts = [n for n in CONTEXTS if n + max(ROWS) <= loaded.context]
    models = {name: type(name, (TransformersModel,), {"bodies": bodies})(loaded.model, loaded.tokenizer)
              for name, bodies in BODIES.items()}  # fmt: skip
    held = {name: stores(lm, text, contexts) for name, lm in models.items()}
    cases = [(context, 1) for context in contexts] + [(BEHIND, rows) for rows in ROWS if rows > 1]
    times: dict[tuple[str, int, int], list[float]] = {}
    with torch.inference_mode():
        for _ in tqdm(range(given.repeats + 1), desc="repeats"):
            for context, rows in cases:
                for name, lm in models.items():
                    store, start = held[name][context], clock(lm.device)
                    lm.forward(text[:rows], range(context, context + rows), store)
                    times.setdefault((name, context, rows), []).append(1000 * (clock(lm.device) - start))
                    store.discard()
    rows = [{"body": name, "context": context, "rows": count, "ms": statistics.median(found[1:])}
            for (name, context, count), found in times.items()]  # the first warms up  # fmt: skip
    facts = {"model": given.model, "threads": given.threads, "repeats": given.repeats}
    finish(loaded, rows, given.out, **facts, bodies={name: lm.body for name, lm in models.items()})
    if given.figure:
        figure(rows, f"{given.model}, {given.threads} thread(s)").write_html(given.figure, include_plotlyjs="cdn")


def figure(rows: list[dict], title: str):
    """Time of one row over the context, and of several rows over that of one."""
    from plotly.subplots import make_subplots

    one = {row["body"]: row["ms"] for row in rows if (row["context"], row["rows"]) == (BEHIND, 1)}
    parts = [[row for row in rows if row["rows"] == 1], [row for row in rows if row["context"] == BEHIND]]
    names = ("one row, by the tokens before it", f"rows behind {BEHIND} tokens, over one row")
    found = make_subplots(1, 2, subplot_titles=names)
    for column, (part, axis) in enumerate(zip(parts, ("context", "rows"), strict=True), 1):
        for color, body in zip(("#888888", "#4c78a8", "#e45756"), BODIES, strict=True):
            x = [row[axis] for row in part if row["body"] == body]
            y = [row["ms"] / (one[body] if column == 2 else 1) for row in part if row["body"] == body]
            line = {"name": body, "legendgroup": body, "showlegend": column == 1, "line": {"color": color}}
            found.add_scatter(x=x, y=y, mode="lines+markers", row=1, col=column, **line)
    found.update_xaxes(title="tokens", row=1, col=1).update_xaxes(title="rows", row=1, col=2)
    found.update_yaxes(title="ms", rangemode="tozero", row=1, col=1)
    found.update_yaxes(title="times one row", rangemode="tozero", row=1, col=2)
    return found.update_layout(title=title, template="simple_white", width=1000, height=380)


if __name__ == "__main__":
    main()
