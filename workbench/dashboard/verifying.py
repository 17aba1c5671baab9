"""Whether the form's decoder spells what plain decoding does: texts, counted runs, and three gauges."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from workbench.dashboard.charts import gauge, signed
from workbench.dashboard.comparing import PLAIN, SAME, many, percent
from workbench.dashboard.html import badge, inert, line
from workbench.dashboard.jobs import Job
from workbench.errors import BadInput
from workbench.experiments.compare import Arm, Comparison, Run, interval
from workbench.experiments.lossless import Verdict, lossless
from workbench.report.headline import acted, claim

TOKENS = 48  # of a compared text
FULL, SAME_CACHE, OWN = "plain decoding, full cache", "plain decoding, same cache", "the decoder"
COUNTING = "Texts differ seed by seed, as they may; so runs are counted."
WEAKEST = ("own", "lossy", "numeric", "distribution", "seeded", "exact")
Found = list[dict[str, Run]]


def bound(seen: int, tried: int) -> float:
    """The rate that is not exceeded, with 95 % confidence, where `seen` of `tried` were found (Clopper-Pearson)."""
    if seen >= tried:
        return 1.0
    ways = [math.lgamma(tried + 1) - math.lgamma(k + 1) - math.lgamma(tried - k + 1) for k in range(seen + 1)]
    low, high = seen / tried, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        logs = (way + k * math.log(rate) + (tried - k) * math.log1p(-rate) for k, way in enumerate(ways))
        low, high = (rate, high) if sum(map(math.exp, logs)) > 0.05 else (low, rate)
    return high


class Apart(NamedTuple):
    """How texts differ from others, pair by pair. parted: texts that do; tokens: compared, up to the first difference
    of each text."""

    texts: int = 0
    parted: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, found: Found, one: str, other: str) -> "Apart":
        """Of the texts of two arms."""
        return sum((cls.pair(runs[one].trace.token_ids, runs[other].trace.token_ids) for runs in found), cls())

    @classmethod
    def pair(cls, a: list[int], b: list[int]) -> "Apart":
        """Of two texts."""
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        return cls(1, int(a != b), min(same + 1, max(len(a), len(b))))

    def __add__(self, other: "Apart") -> "Apart":
        return Apart(*map(sum, zip(self, other, strict=True)))

    @property
    def rate(self) -> float:
        """First differences per token compared."""
        return self.parted / self.tokens if self.tokens else 0.0

    @property
    def most(self) -> float:
        """The rate that is not exceeded, with 95 % confidence."""
        return bound(self.parted, self.tokens)

    def __str__(self) -> str:
        tokens, texts = many(self.tokens, "token"), many(self.texts, "text")
        if not self.parted:
            return f"0 of {tokens} differ in {texts}: flip rate below {percent(self.most)} (95 %)"
        flips = f"{many(self.parted, 'flip')} in {tokens}, flip rate {percent(self.rate)}"
        return f"{self.parted} of {texts} differ: {flips}, below {percent(self.most)} (95 %)"


class Measured(Job):
    """Texts of a decoder against plain decoding's, and where they leave the question open, the losslessness meter.

    prompts: texts are decoded from each, at temperature 0 and sampled. runs: counted ones at most, all batches
    together. verdict: the meter's, once it has run. Raises BadInput, before any work, where something does not fit; a
    decoder that refuses to sample is measured at temperature 0 alone.
    """

    def __init__(self, decoder: Any, lm: Any, prompts: Sequence[Any], who: str, runs: int, **settings: Any):
        super().__init__("lossless", who)
        self.decoder, self.lm, self.prompts, self.runs, self.settings = decoder, lm, list(prompts), runs, settings
        self.verdict: Verdict | None = None
        self.now = (0, 0)  # runs counted, and how many there will be
        self.cache, self.warm, self.refused = settings["cache"], settings["temperature"], ""
        arms = {SAME_CACHE: Arm(PLAIN, self.cache), OWN: Arm(decoder, self.cache)}
        full = {FULL: Arm(PLAIN)} if self.cache else {}
        how = {"max_new_tokens": TOKENS, "constraint": settings.get("constraint")}
        self.parts = [Comparison(lm, self.prompts, full | arms, gaps=True, temperature=0.0, **how)]
        try:
            self.parts.append(Comparison(lm, self.prompts, arms, temperature=self.warm, **how))
        except BadInput as error:
            self.refused = str(error)

    def counted(self, done: int, runs: int) -> bool:
        """Where the count is; True ends it. The verdict is that of the runs so far, if they are a hundred."""
        self.now = (done, runs)
        return self._halt.is_set() or self.turn.over

    def work(self) -> None:
        for part in self.parts:
            for _ in part:
                if self._halt.is_set() or self.turn.over:
                    return
        if self.open:
            how = {"tokens": TOKENS, "runs": self.runs // 2, "progress": self.counted}  # the meter may double its runs
            self.verdict = lossless(self.decoder, self.lm, self.prompts, **how, **self.settings)

    @property
    def texts(self) -> list[Apart]:
        """The decoder against plain decoding under the same cache: at temperature 0, and sampled."""
        return [Apart.of(list(part.found), SAME_CACHE, OWN) for part in self.parts]

    @property
    def promised(self) -> list[str]:
        """What the decoder guarantees at temperature 0 and, if it does, when it samples."""
        return [part.found[0][OWN].trace.run["guarantee"] for part in self.parts if part.found]

    @property
    def open(self) -> bool:
        """Whether equal texts do not settle it: some differ, or the guarantee is not of the same text."""
        return any(one.parted for one in self.texts) or any(name not in SAME for name in self.promised)

    @property
    def acted(self) -> bool:
        """Whether the cache stack did anything to these texts."""
        return any(acted(runs[OWN].trace) for runs in list(self.parts[0].found))

    @property
    def known(self) -> bool:
        """Whether there is a verdict: all texts are compared and, where they leave it open, runs were counted."""
        compared = all(len(part.found) == len(self.prompts) for part in self.parts)
        return compared and (self.verdict is not None or not self.open)

    def shown(self) -> tuple:
        """The verdict and the gauges, as far as they are known, or how far it is."""
        if self.error:
            return (line(self.error),)
        bar = "" if self.over else self._progress()
        if not self.parts[0].found:
            return (bar or line("Stopped before the first text was compared."),)
        gauges = f'<div class="wb-gauges">{"".join(self._gauges())}</div>'
        return (f'{bar}<div class="wb-report">{self._said()}{gauges}{self._notes()}</div>',)

    def _progress(self) -> str:
        done, total = self.now
        text = f"{done} of {many(total, 'run')} counted …"
        if not total:
            done, total = (sum(getattr(part, name) for part in self.parts) for name in ("done", "total"))
            text = f"{done} of {many(total, 'text')} decoded: comparing with plain decoding …"
        return line(text, done, total)

    def badge(self) -> str:
        """The verdict as a badge; "? not measured" before there is one."""
        if not self.known:
            why = "some texts are not compared yet, or no runs were counted"
            return badge("? not measured" if self.over else "? measuring", why)
        found, words = self.verdict, {*self.promised}
        words |= {found.greedy, found.sampled} - {None} if found else set()
        if found and found.holds is False:
            return badge("✕ guarantee does not hold", "texts or counts contradict the guarantee", True)
        weakest = min(words, key=lambda word: WEAKEST.index(word) if word in WEAKEST else 0)
        apart = "".join(map(str, self._apart()))
        return badge(**claim(weakest, bool(self.cache), self.acted, "this measurement", apart=apart))

    def _said(self) -> str:
        """The verdict: badge, what is guaranteed, and what was seen, with its number and bound."""
        greedy, *sampled = self.texts
        where = zip(self.promised, ("at temperature 0", "when sampling"), strict=False)
        promised = "Guaranteed: " + ", ".join(f"{name} {when}" for name, when in where) + "."
        alike = all(name in SAME for name in self.promised) and not (self.verdict and self.verdict.runs)
        seen = str(sum(sampled, greedy) if alike else greedy)
        if self.verdict and self.verdict.runs:
            seen += f", and {many(2 * self.verdict.runs, 'run')} counted"
        return f'<p class="wb-said">{self.badge()} {inert(f"{promised} {seen}.")}</p>'

    def _gauges(self) -> Iterator[str]:
        greedy, *sampled = self.texts
        yield _gauge("plain decoding under the same cache", greedy)
        warm, found = f"at temperature {self.warm:g}", self.verdict
        if not sampled:
            yield gauge(f"? sampling {warm}", 0, 0, f"The decoder refuses to sample: {self.refused}")
        elif found and found.runs:
            differs = found.sampled == "lossy"
            counted = f"{many(2 * found.runs, 'run')} counted: total variation {found.tv:.3f}"
            text = f"{counted}, noise alone {found.tv_noise:.3f}; from {found.tv_detectable:.2f} on it would show"
            head = f"{'≠' if differs else '='} sampling {warm}, by counting"
            yield gauge(head, found.tv if differs else 0, found.tv_detectable, text)
        elif sampled[0].parted and self.promised[-1] not in SAME:
            yield gauge(f"? sampling {warm}, by counting", 0, 0, COUNTING)
        else:
            yield _gauge(f"seed by seed {warm}", *sampled)
        yield self._full()

    def _apart(self) -> tuple[Apart, str]:
        """The texts against those of the full cache, and the divergence in words where it is known."""
        runs = list(self.parts[0].found)
        gaps = [found[OWN].gap for found in runs]
        known = bool(gaps) and None not in gaps
        more = f"; KL {signed(float(np.mean(gaps)), *interval(gaps, np.mean))} nats / token" if known else ""
        return Apart.of(runs, FULL if self.cache else SAME_CACHE, OWN), more

    def _full(self) -> str:
        """The gauge against the full cache."""
        apart, more = self._apart()
        if not self.acted:
            more += "; the cache policy never acted on these texts" if self.cache else "; there is no cache stack"
        return _gauge("plain decoding with the full cache", apart, more)

    def _notes(self) -> str:
        """What was decoded, and how the meter found what it did."""
        texts = f"{many(len(self.prompts), 'prompt')}: that of the settings"
        more = len(self.prompts) - 1
        texts += f" and {many(more, 'short held-out prompt')}" if more else ""
        how = "at temperature 0" + (" and sampled" if len(self.parts) > 1 else "")
        made = f"<p>{texts}; up to {TOKENS} tokens each, {how}.</p>"
        if self.verdict is None:
            return made
        rows = (("at temperature 0", self.verdict.greedy_note), ("when sampling", self.verdict.sampled_note))
        notes = "".join(f"<p><b>{when}</b> {inert(note)}</p>" for when, note in rows)
        return f"{made}<details><summary>How the texts and runs were compared</summary>{notes}</details>"


def _gauge(what: str, apart: Apart, more: str = "") -> str:
    """The gauge of texts against those that they should equal."""
    if not apart.texts:
        return gauge(f"? {what}", 0, 0, "not measured yet")
    return gauge(f"{'≠' if apart.parted else '='} {what}", apart.rate, apart.most, f"{apart}{more}")
