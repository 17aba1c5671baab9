"""Decoders and cache stacks compared: the job, a sentence, two charts and the table."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

import workbench as wb
from workbench.dashboard.charts import EXACT, Dot, Mark, badge, intervals, scatter, signed, words
from workbench.dashboard.html import inert, line
from workbench.dashboard.jobs import Job
from workbench.dashboard.limits import LONG
from workbench.experiments.compare import Arm, Comparison
from workbench.trace import Trace

__all__ = ["BASELINE", "PLAIN", "Compared", "acted", "claim", "many", "percent", "report"]

BASELINE = "plain"
PLAIN = wb.Autoregressive()
LOSING = ("evict", "merge", "narrow", "drop")  # what a policy does to a cache that attention can tell
LOOK = "Speed-up, distance from the full cache's distribution, and bytes. Lower right and small is best."
WARM = 4  # tokens before the runs that count
SAME = ("exact", "seeded")  # guarantees of the same text
UNITS = ("B", "KiB", "MiB", "GiB")


def many(count: int, noun: str) -> str:
    """A number of things in words: "1 prompt", "1 152 tokens"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}".replace(",", "\u202f")


def percent(share: float) -> str:
    """A share in words, of two digits: "36 %", "0.26 %"."""
    return f"{float(f'{100 * share:.2g}'):g} %"


def acted(trace: Trace) -> bool:
    """Whether a run's cache stack left something out, or stored it in fewer bits than the model does.

    True, too, where the run was recorded at level `off` and does not tell.
    """
    if not trace.run.get("cache") or trace.run.get("level") == "off":
        return bool(trace.run.get("cache"))
    events = trace.events[(trace.events["type"] == "cache") & (trace.events["model"] == "target")]
    width = next((model.get("kv_bits") for model in trace.run["models"] if model.get("role") == "target"), None)
    narrow = events["bits"] < width if width else events["op"] == "quantize"
    return bool((events["op"].isin(LOSING) | narrow).any())


class Compared(Job):
    """A `Comparison` of arms with plain decoding over the full cache. own: arms of the user's making.

    Raises BadInput, before any work, where a prompt, an arm or a setting does not fit.
    """

    def __init__(
        self,
        lm: Any,
        prompts: Sequence[Any],
        arms: Mapping[str, Arm],
        who: str = "",
        own: Sequence[str] = (),
        **settings: Any,
    ):
        super().__init__("comparison", who)
        self.lm, self.settings, self.own = lm, settings, own
        shared = {name: value for name, value in settings.items() if name != "cache"}  # every arm has its own
        self.comparison = Comparison(lm, prompts, {BASELINE: Arm(PLAIN), **arms}, gaps=True, **shared)
        self._rows: tuple[int, list[dict[str, Any]], str] = (0, [], "")  # prompts in it, the rows, the report
        self._begun = self._ended = 0.0

    def work(self) -> None:
        self._warm()
        self._begun = self._ended = time.monotonic()
        for _ in self.comparison:
            self._ended = time.monotonic()
            if self.turn.over:
                self.error = LONG
            if self._halt.is_set() or self.error:
                return

    def _warm(self) -> None:
        """A few tokens under every arm, so that none pays for what a first run does once."""
        for arm in self.comparison.arms.values():
            settings = self.settings | {"cache": arm.cache, "max_new_tokens": WARM}
            session = wb.Session(self.lm, self.comparison.prompts[0], arm.decoder, **settings)
            while not self._halt.is_set() and session.step() is not None:
                pass

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the comparison, made again only where a prompt more is finished. `acted`: the cache stack did
        something in these runs; `plain`: the decoder is plain decoding."""
        finished = len(self.comparison.found)
        if finished != self._rows[0]:
            rows, found = self.comparison.rows(), self.comparison.found[:finished]
            for row in rows:
                row["acted"] = any(acted(one[row["arm"]].trace) for one in found)
                row["plain"] = self.comparison.arms[row["arm"]].decoder == PLAIN
            self._rows = (finished, rows, report(rows, self.own))
        return self._rows[1]

    def shown(self) -> tuple:
        """How far it is, its charts and table, and whether that can be saved."""
        rows = self.rows()
        saved = gr.update(interactive=bool(rows))
        return self._progress(), self._rows[2], saved, saved

    def _progress(self) -> str:
        runs, spent = self.comparison, self._ended - self._begun
        finished, prompts = len(runs.found), len(runs.prompts)
        whole = f"{finished} of {many(prompts, 'prompt')}"
        if not self.over:
            left = f" · {spent / runs.done * (runs.total - runs.done):.0f} s left" if runs.done else ""
            where = f"prompt {min(finished + 1, prompts)} of {prompts} under {runs.now!r}" if runs.now else "warming up"
            bar = f'<progress max="{runs.total}" value="{runs.done}" aria-label="runs done"></progress>'
            return line(f"{runs.done} of {runs.total} runs{left} · {where} …", bar)
        if self.error:
            return line(self.error)
        done = f"Done: {whole}" if finished == prompts else f"Stopped: {whole} are in the table"
        sure = " · paired by prompt, with the same seed · 95 % bootstrap intervals over prompts" if finished > 1 else ""
        return line(f"{done} · {runs.done} of {runs.total} runs in {spent:.0f} s{sure}")


def report(rows: Sequence[dict[str, Any]], own: Sequence[str] = ()) -> str:
    """What the rows show in a sentence, the two charts, and the table; `own` arms stand out, else the fastest."""
    others = rows[1:] or rows
    mine = [row["arm"] for row in rows if row["arm"] in own]
    acting = [row for row in others if not _idle(row)] or others
    strong = mine[-1] if mine else max(acting, key=lambda row: row["speedup"])["arm"]
    marks = [
        Mark(row["arm"], row["speedup"], *_ends(row, "speedup"), _speed(row, row is rows[0]), row["arm"] == strong)
        for row in rows
    ]
    known = [row for row in rows if row["kl_nats"] is not None]
    missing = [row["arm"] for row in rows if row["kl_nats"] is None]
    look = LOOK + (f" Without a KL, so not drawn: {', '.join(missing)}." if missing else "")
    dots = [
        Dot(row["arm"], _figure(row, "speedup"), _figure(row, "kl_nats"), row["cache_bytes"] - row["draft_cache_bytes"],
            row["draft_cache_bytes"], row["arm"] == strong)
        for row in known
    ]  # fmt: skip
    first = intervals(marks, "speed-up of every arm over plain decoding, with its interval")
    second = scatter(dots, "speed-up, KL divergence from the full cache and bytes of every arm") if dots else ""
    return (
        f'<div class="wb-report"><p class="wb-said">{inert(sentence(rows))}</p>'
        f'<div class="wb-two"><section><h3>Speed-up over plain decoding</h3><p>{_sure(rows)}</p>{first}</section>'
        f"<section><h3>What it costs</h3><p>{inert(look)}</p>{second}</section></div>{_table(rows, strong)}</div>"
    )


def sentence(rows: Sequence[dict[str, Any]]) -> str:
    """What the table shows: the fastest arm, the smallest cache, and what did not act or does not add up."""
    base, *others = rows
    if not others:
        return ""
    said = [_fastest([row for row in others if not _idle(row)] or others)]
    small = min(others, key=lambda row: row["cache_bytes"])
    if 0 < small["cache_bytes"] < 0.9 * base["cache_bytes"]:
        part = percent(small["cache_bytes"] / base["cache_bytes"])
        kl = "" if small["kl_nats"] is None else f", at a KL of {signed(*_figure(small, 'kl_nats'))} nats / token"
        said.append(f"{small['arm']} keeps the smallest cache, {part} of plain's{kl}")
    idle = [row["arm"] for row in others if _idle(row)]
    if idle:
        said.append(f"the cache policy of {', '.join(idle)} never acted on these texts: they say nothing about it")
    broken = [row["arm"] for row in others if _broken(row)]
    if broken:
        said.append(f"{', '.join(broken)} should spell plain decoding's text and does not: see Verify")
    return "; ".join(said) + "."


def _fastest(rows: Sequence[dict[str, Any]]) -> str:
    """Which arm is fastest, and how sure that is."""
    best = max(rows, key=lambda row: row["speedup"])
    figure = f"{_speed(best)} the speed of plain decoding"
    if best["speedup"] <= 1:
        return f"No arm is faster than plain decoding; {best['arm']} comes nearest, at {figure}"
    if best["speedup_low"] is None:
        return f"{best['arm']} was fastest on the one prompt (no interval): {figure}"
    return f"{best['arm']} is fastest: {figure}" + (", not surely faster" if best["speedup_low"] <= 1 else "")


def _idle(row: dict[str, Any]) -> bool:
    return row["cache"] and not row["acted"]


def _broken(row: dict[str, Any]) -> bool:
    return row["guarantee"] in SAME and (not row["cache"] or _idle(row)) and row["same_text"] < 1


def _ends(row: dict[str, Any], name: str) -> tuple[float | None, float | None]:
    return row[f"{name}_low"], row[f"{name}_high"]


def _figure(row: dict[str, Any], name: str) -> tuple[float, float | None, float | None]:
    return row[name], *_ends(row, name)


def _speed(row: dict[str, Any], reference: bool = False) -> str:
    """A speed-up as text: "1.62× [1.51, 1.73]"."""
    value, low, high = _figure(row, "speedup")
    return "reference" if reference else f"{value:.2f}×" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def _sure(rows: Sequence[dict[str, Any]]) -> str:
    count = rows[0]["prompts"]
    return f"Median over {count} prompts, 95 % bootstrap interval." if count > 1 else "1 prompt: no interval."


def claim(row: dict[str, Any]) -> str:
    """What an arm's text is to plain decoding's over the full cache, as a badge; its tooltip says how it is checked."""
    promised, stack, did = row["guarantee"], row["cache"], row["cache"] and row["acted"]
    checked = f"checked by {row['verified_by']}" if row["verified_by"] else "nothing is promised, so nothing is checked"
    if promised == "own":
        return badge("≈ own distribution", f"samples from a distribution of its own; {checked}", caution=True)
    if promised == "lossy":
        return badge("≈ lossy", f"may keep tokens that plain decoding would not; {checked}", caution=True)
    if did and row["plain"]:
        about = f"plain decoding over a cache that drops or rounds; the columns KL and same text measure it; {checked}"
        return badge("≈ lossy cache", about, caution=True)
    if did:
        about = f"{promised} against plain decoding under the same cache, which itself is lossy; {checked}"
        return badge("≈ exact under its cache", about, caution=True)
    if _broken(row):
        about = f"{promised}, yet some texts differ: near-ties decided by rounding, or a fault; Verify tells; {checked}"
        return badge("≠ texts differ", about, caution=True)
    if stack:
        about = "the stack left nothing out and rounded nothing in these runs, so they say nothing about it"
        return badge("○ policy never acted", f"{about}; {checked}")
    kind = {"exact": "the tokens of plain decoding", "seeded": "the tokens of plain decoding, seed by seed"}
    about = kind.get(promised, "the distribution of plain decoding, not its draws")
    return badge("= exact" if promised in SAME else "= exact in distribution", f"{about}; {checked}")


def _table(rows: Sequence[dict[str, Any]], strong: str) -> str:
    """The rows under headings with units; figures at the right, their intervals beside them."""
    most = max(row["cache_bytes"] for row in rows)
    power = next(power for power in (3, 2, 1, 0) if most >= 1024**power or not power)
    heads = (
        "arm", "claim, as measured", "speed-up (×)", "ms / token", "tokens / target forward", "acceptance rate",
        f"peak cache, target + draft ({UNITS[power]})", "bits / element", "KL (nats / token)", "same text",
    )  # fmt: skip
    top = "".join(f'<th scope="col">{inert(head)}</th>' for head in heads)
    body = ""
    for row in rows:
        cells = [claim(row), *_cells(row, row is rows[0], 1024**power)]
        kind = ' class="wb-strong"' if row["arm"] == strong else ""
        filled = "".join(f"<td>{cell}</td>" for cell in cells)
        body += f'<tr{kind}><th scope="row">{inert(row["arm"])}</th>{filled}</tr>'
    made = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wb-scroll wb-arms" tabindex="0" role="region" aria-label="the comparison">{made}</div>'


def _cells(row: dict[str, Any], reference: bool, unit: int) -> list[str]:
    """A row's figures as inert cells."""
    rate, draft = row["draft_acceptance_rate"], row["draft_cache_bytes"]
    held = words((row["cache_bytes"] - draft) / unit) + (f" <small>+ {words(draft / unit)}</small>" if draft else "")
    return [
        "1" if reference else _with_small(f"{row['speedup']:.2f}", *_ends(row, "speedup"), "{:.2f}"),
        words(row["ms_per_token"]),
        _known(row["tokens_per_target_forward"], ".2f"),
        "–" if rate is None else percent(rate),
        held if row["cache_bytes"] else "–",
        _known(row["bits_per_element"], ".1f"),
        "–" if row["kl_nats"] is None else _with_small(words(row["kl_nats"]), *_ends(row, "kl_nats")),
        f"{round(row['same_text'] * row['prompts'])} / {row['prompts']}",
    ]


def _known(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _with_small(figure: str, low: float | None, high: float | None, form: str = "") -> str:
    """A figure with its interval in small type, where it has one."""
    if low is None or high is None or abs(high) < EXACT:
        return figure
    low, high = (form.format(end) if form else words(end) for end in (low, high))
    return f"{figure} <small>[{low}, {high}]</small>"
