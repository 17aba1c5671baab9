"""A comparison of decoders and cache stacks on the same prompts, decoded by a worker; whoever watches it only reads."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch

from workbench.dashboard.run import give_turn, one_line, take_turn
from workbench.decoders import Autoregressive, Decoder
from workbench.engine.model import LanguageModel
from workbench.session import Session
from workbench.trace import Trace

__all__ = ["BASELINE", "Arm", "Trial"]

BASELINE = "plain"
SAME_LAW = ("exact", "distribution", "seed")  # claims under which a decoder's law is the target's own


@dataclass(frozen=True)
class Arm:
    """A decoder over a cache stack (None: every token as it is)."""

    decoder: Decoder
    cache: Any = None


class Trial(threading.Thread):
    """Every prompt under every arm, prompt by prompt, the plain run of the full-precision full cache first.

    rows(): a mapping per arm, pooled over the prompts finished so far. done, total: runs. error: why it failed.
    Raises BadInput, before any work, where a prompt, an arm or a setting does not fit.
    """

    def __init__(self, lm: LanguageModel, prompts: Sequence[Any], arms: Mapping[str, Arm], **settings: Any):
        super().__init__(daemon=True, name="comparison")
        self.lm, self.prompts, self.settings = lm, list(prompts), {**settings, "cache": None}
        self.arms = {BASELINE: Arm(Autoregressive()), **arms}
        for prompt in self.prompts:
            for arm in self.arms.values():
                self._session(prompt, arm)
        self.total = len(self.prompts) * len(self.arms)
        self.done, self.error = 0, ""
        self.found: list[dict[str, tuple[Trace, float | None]]] = []  # one mapping per finished prompt
        self._halt = threading.Event()

    @property
    def over(self) -> bool:
        return not self.is_alive()

    def start(self) -> None:
        """Begin. Raises BadInput where too many runs are being decoded already."""
        take_turn()
        super().start()

    def stop(self) -> None:
        """End after the round under way; what is finished stays."""
        self._halt.set()

    def run(self) -> None:
        try:
            for prompt in self.prompts:
                found = dict(self._prompt(prompt))
                if self._halt.is_set():
                    break
                self.found.append(found)
        except Exception as error:  # noqa: BLE001  (a comparison that fails is shown, and harms nothing else)
            self.error = one_line(error)
        finally:
            give_turn()

    def _prompt(self, prompt: Any) -> Iterator[tuple[str, tuple[Trace, float | None]]]:
        forced: list[int] = []
        laws: dict[int, torch.Tensor] = {}
        for name, arm in self.arms.items():
            session = self._session(prompt, arm)
            self._decode(session)
            if self._halt.is_set():
                return
            if name == BASELINE:
                forced = session.trace.token_ids
                laws = self._laws(prompt, arm, forced)
            same = arm.cache is None and session.trace.run["claim"] in SAME_LAW
            yield name, (session.trace, 0.0 if same else gap(laws, self._laws(prompt, arm, forced)))
            self.done += 1

    def _session(self, prompt: Any, arm: Arm, **more: Any) -> Session:
        return Session(self.lm, prompt, arm.decoder, **{**self.settings, "cache": arm.cache, **more})

    def _decode(self, session: Session) -> None:
        while not self._halt.is_set() and session.step() is not None:
            pass

    def _laws(self, prompt: Any, arm: Arm, forced: list[int]) -> dict[int, torch.Tensor]:
        """The raw law at every token of a forced text, as log-probabilities by position."""
        seen: dict[int, torch.Tensor] = {}

        def note(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen[ids.shape[1]] = scores[0].double().log_softmax(-1).cpu()
            return scores

        own = arm.decoder.claim(Session(self.lm, prompt, **self.settings).settings.sampling) not in SAME_LAW
        scorer = Arm(arm.decoder if own else Autoregressive(), arm.cache)
        more = {"force": forced, "max_new_tokens": len(forced), "processors": (note,), "level": "off", "stop": ()}
        self._decode(self._session(prompt, scorer, **more, ignore_eos=True))
        return seen

    def rows(self) -> list[dict[str, Any]]:
        """The table: one row per arm."""
        base = [one[BASELINE][0] for one in self.found]
        return [self._row(name, base) for name in self.arms] if self.found else []

    def _row(self, name: str, base: list[Trace]) -> dict[str, Any]:
        traces, gaps = [one[name][0] for one in self.found], [one[name][1] for one in self.found]
        summaries = [trace.summary() for trace in traces]
        times = [_ms_per_token(trace) for trace in traces]

        def pooled(above: str, below: str) -> float | None:
            whole = sum(s[below] or 0 for s in summaries)
            return sum(s[above] or 0 for s in summaries) / whole if whole else None

        run = traces[0].run
        bits = [s["bits_per_element"] for s in summaries if s["bits_per_element"] is not None]
        return {
            "arm": name,
            "claim": run["claim"] + (", under its cache" if run["cache"] else ""),
            "verified by": "; ".join(run.get("verified") or ()) or "–",
            "prompts": len(traces),
            "tokens": sum(s["tokens"] for s in summaries),
            "tokens / target forward": pooled("tokens", "target_forwards"),
            "draft acceptance": pooled("num_accepted_tokens", "num_draft_tokens"),
            "peak cache (bytes)": max((s["cache_bytes"] or {}).get("peak") or 0 for s in summaries),
            "bits / element": mean(bits) if bits else None,
            "KL from the full cache (nats / token)": mean(gaps) if None not in gaps else None,
            "same text": mean(t.token_ids == b.token_ids for t, b in zip(traces, base, strict=True)),
            "repeated 4-grams": mean(s["repeated_4gram_share"] for s in summaries),
            "ms / token": median(times),
            "speed-up": median(_ms_per_token(b) / t if t else 1.0 for b, t in zip(base, times, strict=True)),
        }


def gap(full: Mapping[int, torch.Tensor], other: Mapping[int, torch.Tensor]) -> float | None:
    """Mean KL divergence of the second laws from the first, over the positions that both have; in nats per token."""
    places = sorted(full.keys() & other.keys())
    return mean(float((full[i].exp() * (full[i] - other[i])).sum()) for i in places) if places else None


def _ms_per_token(trace: Trace) -> float:
    rounds = trace.rounds
    return float(rounds.loc[rounds["mode"] != "prefill", "total_ms"].sum()) / max(1, len(trace.token_ids))
