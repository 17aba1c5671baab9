"""Decoders and cache stacks compared: the job, a sentence, two charts and the table."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

import workbench as wb
from workbench.dashboard.charts import Dot, Mark, intervals, scatter, signed, words
from workbench.dashboard.html import badge, heads, inert, line
from workbench.dashboard.jobs import Job
from workbench.dashboard.limits import LONG
from workbench.experiments.compare import Arm, Comparison
from workbench.report.headline import acted, claim
from workbench.views.figure import unit_of

BASELINE = "plain"
PLAIN = wb.Autoregressive()
LOOK = "Speed-up, distance from the full cache's distribution, and bytes. Lower right and small is best."
WARM = 4  # tokens before the runs that count
SAME = ("exact", "seeded")  # guarantees of the same text


def many(count: int, noun: str) -> str:
    """A number of things in words: "1 prompt", "1 152 tokens"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}".replace(",", "\u202f")


def percent(share: float) -> str:
    """A share in words, of two digits: "36 %", "0.26 %"."""
    return f"{float(f'{100 * share:.2g}'):g} %"


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
        something in these runs."""
        finished = len(self.comparison.found)
        if finished != self._rows[0]:
            rows, found = self.comparison.rows(), self.comparison.found[:finished]
            for row in rows:
                row["acted"] = any(acted(one[row["arm"]].trace) for one in found)
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
            return line(f"{runs.done} of {runs.total} runs{left} · {where} …", runs.done, runs.total)
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
        Mark(row["arm"], *_figure(row, "speedup"), "reference" if row is rows[0] else _speed(row), row["arm"] == strong)
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
    count = rows[0]["prompts"]
    sure = f"Median over {count} prompts, 95 % bootstrap interval." if count > 1 else "1 prompt: no interval."
    first = intervals(marks, "speed-up of every arm over plain decoding, with its interval")
    second = scatter(dots, "speed-up, KL divergence from the full cache and bytes of every arm") if dots else ""
    return (
        f'<div class="wb-report"><p class="wb-said">{inert(sentence(rows))}</p>'
        f'<div class="wb-two"><section><h3>Speed-up over plain decoding</h3><p>{sure}</p>{first}</section>'
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
    broken = [row["arm"] for row in others if claimed(row)["text"].startswith("≠")]
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


def _figure(row: dict[str, Any], name: str) -> tuple[float, float | None, float | None]:
    """A figure and the ends of its interval."""
    return row[name], row[f"{name}_low"], row[f"{name}_high"]


def _speed(row: dict[str, Any]) -> str:
    """A speed-up as text: "1.62× [1.51, 1.73]"."""
    return signed(*_figure(row, "speedup"), "{:.2f}".format, "×")


def claimed(row: dict[str, Any]) -> dict[str, Any]:
    """What an arm's text is to plain decoding's over the full cache: the parts of a badge."""
    did, differs = row["cache"] and row["acted"], row["guarantee"] in SAME and row["same_text"] < 1
    apart = "see the columns KL and same text"
    return claim(row["guarantee"], row["cache"], did, row["verified_by"], differs, apart)


def _table(rows: Sequence[dict[str, Any]], strong: str) -> str:
    """The rows under headings with units; figures at the right, their intervals beside them."""
    size, unit = unit_of(max(row["cache_bytes"] for row in rows))
    top = heads((
        "arm", "claim, as measured", "speed-up (×)", "ms / token", "tokens / target forward", "acceptance rate",
        f"peak cache, target + draft ({unit})", "bits / element", "KL (nats / token)", "same text",
    ))  # fmt: skip
    body = ""
    for row in rows:
        kind = ' class="wb-strong"' if row["arm"] == strong else ""
        filled = "".join(f"<td>{cell}</td>" for cell in _cells(row, row is rows[0], size))
        body += f'<tr{kind}><th scope="row">{inert(row["arm"])}</th>{filled}</tr>'
    made = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wb-scroll wb-arms" tabindex="0" role="region" aria-label="the comparison">{made}</div>'


def _cells(row: dict[str, Any], reference: bool, unit: float) -> list[str]:
    """A row's claim and figures as inert cells."""
    rate, draft = row["draft_acceptance_rate"], row["draft_cache_bytes"]
    held = words((row["cache_bytes"] - draft) / unit) + (f" <small>+ {words(draft / unit)}</small>" if draft else "")
    return [
        badge(**claimed(row)),
        "1" if reference else signed(*_figure(row, "speedup"), "{:.2f}".format, small=True),
        words(row["ms_per_token"]),
        words(row["tokens_per_target_forward"]),
        "–" if rate is None else percent(rate),
        held if row["cache_bytes"] else "–",
        words(row["bits_per_element"]),
        signed(*_figure(row, "kl_nats"), small=True),
        f"{round(row['same_text'] * row['prompts'])} / {row['prompts']}",
    ]
