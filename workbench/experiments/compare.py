"""Several decoders on the same prompts, interleaved in one process, as one table."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from workbench.decoders import Autoregressive, Decoder
from workbench.engine.bundle import together
from workbench.engine.model import LanguageModel
from workbench.engine.prompt import Prompt, prompts_of
from workbench.engine.settings import refuse_stateful
from workbench.errors import BadInput, shown
from workbench.session import Session, check_decoder
from workbench.trace import Trace
from workbench.values import whole

RESAMPLES = 2000  # of the bootstrap
SAME = ("exact", "distribution", "seeded")  # guarantees under which a decoder's distribution is the target's own
Distributions = dict[int, torch.Tensor]  # log-probabilities by the number of tokens before them


@dataclass(frozen=True)
class Arm:
    """A decoder over a cache stack (None: every token as it is)."""

    decoder: Decoder
    cache: Any = None


class Run(NamedTuple):
    """The fastest run of a prompt under an arm, and the mean KL from the baseline's distributions where it was asked
    for."""

    trace: Trace
    gap: float | None


class Comparison:
    """Every prompt under every arm, `batch_size` prompts at a time; iterated, it decodes a round at a time, so that it
    can be left after any.

    arms: name -> arm; the first is the baseline. gaps: measure, too, how far the distribution of each arm is from the
    baseline's on the baseline's text. repeats: runs of each prompt and arm, of which the fastest counts. batch_size:
    prompts that share their forwards.

    now: the arm under way. done, total: runs. found: a mapping from arm to run per finished prompt.
    Raises BadInput, before any work, where a prompt, an arm or a setting does not fit.
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Sequence[Prompt],
        arms: Mapping[str, Arm],
        repeats: int = 1,
        gaps: bool = False,
        batch_size: int = 1,
        **settings: Any,
    ):
        if not prompts or not arms:
            raise BadInput("compare: expected at least one prompt and one arm")
        for name, count in (("repeats", repeats), ("batch_size", batch_size)):
            if (whole(count) or 0) < 1:
                raise BadInput(f"{name}: expected an integer of at least 1, got {shown(count)}")
        self.batch_size = batch_size
        self.lm, self.prompts, self.arms = lm, list(prompts), dict(arms)
        self.repeats, self.gaps, self.settings = repeats, gaps, settings
        for prompt in self.prompts:
            for arm in self.arms.values():
                session = self._session(prompt, arm)
                if batch_size > 1:
                    why = "prompts decoded side by side share it"
                    refuse_stateful(session.settings.sampling.processors, session.lm.vocab_size, session.lm.device, why)
        self.now = ""
        self.done, self.total = 0, len(self.prompts) * len(self.arms) * repeats
        self.found: list[dict[str, Run]] = []

    def __iter__(self) -> Iterator[None]:
        for start in range(0, len(self.prompts), self.batch_size):
            prompts = self.prompts[start : start + self.batch_size]
            traces: list[dict[str, Trace]] = [{} for _ in prompts]
            for name, arm in self.arms.items():
                self.now, runs = name, []
                for _ in range(self.repeats):
                    sessions = [self._session(prompt, arm) for prompt in prompts]
                    yield from _decode(*sessions)
                    runs.append([session.trace for session in sessions])
                    self.done += len(sessions)
                for place, found in enumerate(traces):
                    found[name] = min((run[place] for run in runs), key=_decode_ms)
            for prompt, found in zip(prompts, traces, strict=True):
                self.found.append((yield from self._with_gaps(prompt, found)))

    def _with_gaps(self, prompt: Prompt, traces: dict[str, Trace]) -> Generator[None, None, dict[str, Run]]:
        """The runs of a prompt, and the gaps that were asked for; none is measured where it must be 0."""
        found: dict[str, Run] = {}
        for name, trace in traces.items():
            self.now, arm = name, self.arms[name]
            own = arm.cache is None and trace.run["guarantee"] in SAME
            if not found:
                forced, plain, base = trace.token_ids, own, {}
            apart = 0.0 if self.gaps else None
            if self.gaps and not (found and plain and own):
                dists = yield from self._distributions(prompt, arm, forced)
                base = base or dists
                apart = gap(base, dists)
            found[name] = Run(trace, apart)
        return found

    def _session(self, prompt: Prompt, arm: Arm, **more: Any) -> Session:
        return Session(self.lm, prompt, arm.decoder, **{**self.settings, "cache": arm.cache, **more})

    def _distributions(self, prompt: Prompt, arm: Arm, forced: list[int]) -> Generator[None, None, Distributions]:
        """The next-token distribution at every token of a forced text."""
        seen: Distributions = {}

        def note(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen[ids.shape[1]] = scores[0].double().log_softmax(-1).cpu()
            return scores

        promised = arm.decoder.guarantee(self._session(prompt, arm).settings.sampling)
        own = promised not in SAME and not arm.decoder.searches
        scorer = Arm(arm.decoder if own else Autoregressive(), arm.cache)
        more = {"force": forced, "max_new_tokens": len(forced), "processors": (note,), "level": "off", "stop": (),
                "constraint": None, "max_time": None}  # fmt: skip
        yield from _decode(self._session(prompt, scorer, **more, ignore_eos=True))
        return seen

    def rows(self) -> list[dict[str, Any]]:
        """Arm by arm the figures over the prompts finished so far: those of `compare`, with `arm`, `verified_by`,
        whether there is a `cache` stack, and `kl_nats` (the gap in nats per token, None where it is not known) with
        its interval."""
        found = list(self.found)  # one driver may add to it while another thread reads
        base = [next(iter(one.values())).trace for one in found]
        return [self._row(name, [one[name] for one in found], base) for name in self.arms] if found else []

    def _row(self, name: str, runs: list[Run], baseline: list[Trace]) -> dict[str, Any]:
        traces = [run.trace for run in runs]
        summaries = [trace.summary() for trace in traces]

        def pooled(numerator: str, denominator: str) -> float | None:
            below = sum(s[denominator] or 0 for s in summaries)
            return sum(s[numerator] or 0 for s in summaries) / below if below else None

        def average(values: Iterable) -> float | None:
            known = [value for value in values if value is not None]
            return mean(known) if known else None

        first = traces[0].run
        times = [_decode_ms(trace) for trace in traces]
        ratios = [_decode_ms(base) / time if time else 1.0 for base, time in zip(baseline, times, strict=True)]
        gaps = [run.gap for run in runs]
        peaks = [(s["cache_bytes"] or {}).get("peak") or 0 for s in summaries]
        return {
            "arm": name,
            "guarantee": first["guarantee"],
            "verified_by": "; ".join(first.get("verified") or ()),
            "cache": first["cache"] is not None,
            "prompts": len(traces),
            "tokens": sum(s["tokens"] for s in summaries),
            "tokens_per_target_forward": pooled("tokens", "target_forwards"),
            "draft_acceptance_rate": pooled("num_accepted_tokens", "num_draft_tokens"),
            "entropy_raw_nats": average((s["entropy_raw_nats"] or {}).get("mean") for s in summaries),
            "cache_bytes": max(peaks),
            "draft_cache_bytes": _beside_target(traces[peaks.index(max(peaks))]),
            "bits_per_element": average(s["bits_per_element"] for s in summaries),
            "repeated_4gram_share": average(s["repeated_4gram_share"] for s in summaries),
            "same_text": mean(t.token_ids == b.token_ids for t, b in zip(traces, baseline, strict=True)),
            "ms_per_token": float(np.median(times)),
            **_with_interval("speedup", ratios, np.median),
            **_with_interval("kl_nats", [] if None in gaps else gaps, np.mean),
        }


def compare(
    lm: LanguageModel,
    prompts: Prompt | Sequence[Prompt],
    arms: Mapping[str, Decoder | None],
    *,
    repeats: int = 1,
    gaps: bool = False,
    batch_size: int = 1,
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """Decode every prompt under every arm, one after the other, and return a row per arm.

    prompts: one prompt or several. arms: name -> decoder (None is plain decoding); the first is the baseline. An `Arm`
    in place of a decoder brings a cache stack of its own. repeats: runs of each prompt and arm; the fastest counts for
    the time. gaps: score the baseline's text under every arm, too, which gives the column `kl_nats`. batch_size: how
    many prompts are decoded side by side; a prompt's time is then that of the forwards it shares. settings: as for
    `workbench.decode`.

    Columns: `guarantee`, `prompts`, `tokens`, `tokens_per_target_forward`, `draft_acceptance_rate`,
    `entropy_raw_nats`, `cache_bytes` (peak of a run), `draft_cache_bytes` (the part of that peak which drafting adds),
    `bits_per_element`, `repeated_4gram_share`, `same_text` (share of prompts with the baseline's tokens),
    `ms_per_token` (median over prompts) and `speedup` (median over prompts of baseline time over arm time per token,
    both measured here, interleaved). With `gaps`, `kl_nats`: the mean KL divergence of the arm's distribution from the
    baseline's, per token. `speedup_low` and `speedup_high`, `kl_nats_low` and `kl_nats_high` are the ends of the 95 %
    bootstrap interval over prompts (None for one prompt); arms meet the same resamples, paired by prompt. The traces
    are in `.attrs["traces"]`.

    Ctrl-C ends the comparison and returns the prompts finished by then. Raises BadInput before any work where a prompt,
    an arm or a setting does not fit.
    """
    prompts = prompts_of(prompts)
    stack = settings.pop("cache", None)
    given = {name: arm if isinstance(arm, Arm) else Arm(check_decoder(arm), stack) for name, arm in arms.items()}
    runs = Comparison(lm, prompts, given, repeats, gaps, batch_size, **settings)
    try:
        with tqdm(total=runs.total, disable=not progress, desc="compare", unit="run") as bar:
            for _ in runs:
                bar.update(runs.done - bar.n)
            bar.update(runs.done - bar.n)
    except KeyboardInterrupt:
        if not runs.found:
            raise
    left_out = ["verified_by", "cache", *([] if gaps else ["kl_nats", "kl_nats_low", "kl_nats_high"])]
    table = pd.DataFrame(runs.rows()).set_index("arm").drop(columns=left_out)
    table.attrs["traces"] = {name: [one[name].trace for one in runs.found] for name in arms}
    return table


def gap(full: Distributions, other: Distributions) -> float | None:
    """Mean KL divergence of the second distributions from the first, over the positions that both have; in nats per
    token."""
    places = sorted(full.keys() & other.keys())
    return mean(float((full[i].exp() * (full[i] - other[i])).sum()) for i in places) if places else None


def interval(values: Sequence[float], statistic: Callable[..., Any]) -> tuple[float | None, float | None]:
    """The ends of the 95 % bootstrap interval of a statistic (np.mean, np.median) of a value per prompt.

    The seed is fixed, so that as many values of the same prompts meet the same resamples. (None, None) for fewer than
    two values.
    """
    if len(values) < 2:
        return None, None
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(statistic(np.asarray(values)[drawn], axis=1), (0.025, 0.975))
    return float(low), float(high)


def _with_interval(name: str, values: Sequence[float], statistic: Callable[..., Any]) -> dict[str, float | None]:
    """A statistic under its name (None of no values), and the ends of its interval."""
    low, high = interval(values, statistic)
    return {name: float(statistic(values)) if values else None, f"{name}_low": low, f"{name}_high": high}


def _beside_target(trace: Trace) -> int:
    """Bytes on the device of all caches but the target's, after the round in which all together were largest."""
    cache = trace.cache
    away = cache["host_bytes"].where(cache["tier"] != "host", cache["bytes"])
    sizes = (cache["bytes"] - away).groupby([cache["round"], cache["model"] == "target"]).sum().unstack(fill_value=0)
    return int(sizes.loc[sizes.sum(axis=1).idxmax()].get(False, 0)) if len(sizes) else 0


def _decode(*sessions: Session) -> Iterator[None]:
    """To the ends of all, a round of each at a time."""
    while sessions:
        going = together([session.step for session in sessions])
        sessions = [session for session, event in zip(sessions, going, strict=True) if event is not None]
        yield


def _decode_ms(trace: Trace) -> float:
    """Milliseconds per new token after the prefill."""
    spent = sum(event["ms"]["total"] for event in trace.log if event["type"] == "round" and event["mode"] != "prefill")
    return spent / max(1, len(trace.token_ids))
