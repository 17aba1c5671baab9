"""The losslessness meter: what a decoder claims, against what it does on a model, in one call.

Three gates. Greedy texts are compared with plain decoding's, token by token; a difference where the model itself
hardly prefers one token is named numeric. Sampled texts are compared seed by seed. Where seeds differ, thousands of
short runs over the few likeliest tokens are counted against their exact law, which the same model gives by plain
decoding: a chi-square test, and the total variation and KL divergence that were measured.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from workbench.decoders import Autoregressive, Decoder, State
from workbench.engine.loading import load
from workbench.engine.model import LanguageModel
from workbench.engine.prompt import Prompt, encode_prompt, prompts_of
from workbench.errors import BadInput
from workbench.pretrained.prompts import held_out_prompts
from workbench.session import check_decoder, make_settings

__all__ = ["Verdict", "lossless"]

SIGNIFICANCE = 1e-4
STRENGTH = {"lossy": 0, "distribution": 1, "seed": 2, "exact": 2, "numeric": 2}
TIES = {torch.float64: 1e-9, torch.float32: 1e-3}  # nats between the best two; half precisions: two ulps of a logit
HALF_TIE = 0.13
BEGINNING = 64  # tokens of the first prompt that the counted runs go on from


@dataclass(frozen=True)
class Verdict:
    """What `lossless` found; `str()` is the report.

    greedy: `exact`, `numeric` (texts part only at near-ties) or `lossy`; `greedy_note` tells where they part. sampled:
    `seed`, `distribution` or `lossy`, None where the decoder refuses to sample. claim_greedy, claim_sampled: what the
    decoder itself says. p_value, tv, kl_nats: of the counted runs (None where seeds decided); tv_noise, kl_noise: what
    a perfect decoder would show on average with as many runs; runs, cells: how many, over how many texts.
    """

    decoder: str
    claim_greedy: str
    greedy: str
    greedy_note: str
    claim_sampled: str | None
    sampled: str | None
    sampled_note: str
    tokens: int
    p_value: float | None = None
    tv: float | None = None
    tv_noise: float | None = None
    kl_nats: float | None = None
    kl_noise: float | None = None
    runs: int = 0
    cells: int = 0

    @property
    def holds(self) -> bool | None:
        """Whether what was found is at least what is claimed; None for a decoder with a law of its own."""
        pairs = [(self.claim_greedy, self.greedy), (self.claim_sampled, self.sampled)]
        known = [(claim, found) for claim, found in pairs if found is not None]
        if any(claim == "own_law" for claim, _ in known):
            return None
        return all(STRENGTH[found] >= STRENGTH[claim] for claim, found in known)

    @property
    def badge(self) -> str:
        """The weaker of the two findings, as the one word to show."""
        found = [one for one in (self.greedy, self.sampled) if one is not None]
        return min(found, key=lambda one: STRENGTH[one])

    def table(self) -> pd.DataFrame:
        """The figures, one per row."""
        facts = asdict(self) | {"badge": self.badge, "holds": self.holds}
        return pd.DataFrame({"value": [str(v) for v in facts.values()]}, index=list(facts))

    def __str__(self) -> str:
        word = {True: "the claim holds", False: "THE CLAIM DOES NOT HOLD", None: "a law of its own: nothing to hold"}
        lines = [f"{self.decoder}: {self.badge} ({word[self.holds]})"]
        lines.append(f"  temperature 0: claims {self.claim_greedy}, found {self.greedy}: {self.greedy_note}")
        lines.append(f"  sampling: claims {self.claim_sampled}, found {self.sampled}: {self.sampled_note}")
        return "\n".join(lines)


def lossless(
    decoder: Decoder | str,
    lm: LanguageModel | None = None,
    prompts: Sequence[Prompt] | None = None,
    *,
    tokens: int = 48,
    temperature: float = 0.8,
    runs: int = 2000,
    seed: int = 0,
    progress: bool | Callable[[int, int], bool | None] = True,
    **settings: Any,
) -> Verdict:
    """Measure whether a decoder, one of ours or the user's own, spells what plain decoding would.

    Parameters
    ----------
    lm: the target, by default the embedded one. prompts: texts to decode from, by default three held-out ones; the
    end of the first is what the counted runs go on from.
    tokens: length of the compared texts. temperature: of the sampled ones. runs: short runs to count where seeds
    differ; three tokens each, over the model's four likeliest at every place.
    progress: a bar, or a function of (runs done, runs to do) that is called as they are counted and ends the count by
    returning True.
    settings: as for `workbench.decode` (a cache stack, for one): plain decoding runs under the same.

    A test of so many runs sees a total variation well above `tv_noise`, not less: "distribution" means that none was
    seen. Ctrl-C while counting gives the verdict of the runs done so far. Raises BadInput before any work.
    """
    decoder, lm = check_decoder(decoder), lm or load("embedded")
    prompts = [row["prompt"] for row in held_out_prompts(3)] if prompts is None else prompts_of(prompts)
    if not prompts or tokens < 1 or runs < 100:
        raise BadInput(f"lossless: expected prompts, 1 or more tokens and 100 or more runs; got {tokens=}, {runs=}")
    ids = [encode_prompt(lm, prompt)[0] for prompt in prompts]
    base = make_settings(lm, max_new_tokens=tokens, level="off", seed=seed, **settings)
    greedy = replace(base, sampling=replace(base.sampling, temperature=0.0))
    warm = replace(base, sampling=replace(base.sampling, temperature=temperature))
    facts: dict[str, Any] = {"decoder": decoder.declared_name, "tokens": tokens}
    facts["claim_greedy"] = decoder.claim(greedy.sampling)
    for prompt in ids:
        decoder.start(lm, prompt, greedy)
    try:
        decoder.start(lm, ids[0], warm)
        facts["claim_sampled"] = decoder.claim(warm.sampling)
    except BadInput as error:
        facts |= {"claim_sampled": None, "sampled": None, "sampled_note": f"refused: {error}"}
    facts["greedy"], facts["greedy_note"] = _greedy(lm, decoder, ids, greedy)
    if facts["claim_sampled"] is None:
        return Verdict(**facts)
    same = sum(_text(lm, Autoregressive(), p, warm) == _text(lm, decoder, p, warm) for p in ids)
    if same == len(ids):
        note = f"{same} of {same} texts of {tokens} tokens equal plain decoding's, seed by seed"
        return Verdict(**facts, sampled="seed", sampled_note=note)
    return Verdict(**facts, **_counted(lm, decoder, ids[0][-BEGINNING:], warm, runs, progress))


def _text(lm: LanguageModel, decoder: Decoder, prompt: list[int], settings) -> list[int]:
    state = decoder.start(lm, prompt, settings)
    while not state.ended:
        decoder.step(state)
    return state.new_tokens


def _greedy(lm: LanguageModel, decoder: Decoder, prompts: list[list[int]], settings) -> tuple[str, str]:
    """Compare greedy texts; where they part, look at how much the model prefers its own choice."""
    verdict, note = "exact", ""
    for number, prompt in enumerate(prompts):
        plain, found = _text(lm, Autoregressive(), prompt, settings), _text(lm, decoder, prompt, settings)
        if plain == found:
            continue
        at = next(
            (i for i, (a, b) in enumerate(zip(plain, found, strict=False)) if a != b), min(map(len, (plain, found)))
        )
        gap = _gap(lm, [*prompt, *plain[:at]], settings)
        tie = gap <= TIES.get(lm.dtype, HALF_TIE)
        where = f"prompt {number} parts at token {at}, where the best two tokens are {gap:.1e} nats apart"
        if not tie:
            return "lossy", where
        verdict, note = "numeric", f"{where}: a near-tie, decided by rounding"
    equal = f"{len(prompts)} of {len(prompts)} texts of {settings.max_new_tokens} tokens equal plain decoding's"
    return verdict, note or equal


def _gap(lm: LanguageModel, tokens: list[int], settings) -> float:
    """Nats between the two best tokens after these, as plain decoding sees it."""
    settings = replace(settings, max_new_tokens=1, level="default")
    (ids, probs), *_ = _plain_step(lm, tokens, settings, {})
    return math.log(probs[0] / probs[1]) if len(ids) > 1 else math.inf


def _plain_step(lm: LanguageModel, prompt: list[int], settings, forced: dict[int, int]) -> list:
    """The likeliest tokens [ids, p] of the law sampled from (at temperature 0 the raw one), token by token."""
    state = Autoregressive().start(lm, prompt, replace(settings, force=forced))
    columns = []
    while not state.ended:
        step = Autoregressive().step(state)
        name = "topk_raw" if settings.sampling.greedy or "topk_sampled" not in step.tokens else "topk_sampled"
        columns += step.tokens.get(name, [])
    return columns


def _counted(lm: LanguageModel, decoder: Decoder, prompt: list[int], settings, runs: int, progress) -> dict:
    """Runs of three tokens against their exact law, with one pooled second seed where the first is unlucky."""
    length, width = 3, min(4, lm.vocab_size)
    settings = replace(settings, max_new_tokens=length, sampling=replace(settings.sampling, top_k=width))
    settings = replace(settings, eos_ids=frozenset(), level="off")
    law = _law(lm, prompt, settings, length)
    found = _count(lm, decoder, prompt, settings, range(runs), progress)
    if _p_value(found, law) <= SIGNIFICANCE:
        found += _count(lm, decoder, prompt, settings, range(runs, 2 * runs), progress)
    n, p_value = found.total(), _p_value(found, law)
    shares = {text: count / n for text, count in found.items()}
    tv = 0.5 * sum(abs(shares.get(text, 0) - law.get(text, 0)) for text in {*shares, *law})
    kl = sum(s * math.log(s / law[t]) if law.get(t) else math.inf for t, s in shares.items())
    verdict = "distribution" if p_value > SIGNIFICANCE else "lossy"
    noise = 0.5 * sum(math.sqrt(2 * p * (1 - p) / (math.pi * n)) for p in law.values())
    note = f"{n} runs over {len(law)} texts: p = {p_value:.2g}, total variation {tv:.3f} (noise alone {noise:.3f})"
    return {
        "sampled": verdict,
        "sampled_note": note + f", KL {kl:.3f} nats",
        "p_value": p_value,
        "tv": tv,
        "tv_noise": noise,
        "kl_nats": kl,
        "kl_noise": (len(law) - 1) / (2 * n),
        "runs": n,
        "cells": len(law),
    }


def _law(lm: LanguageModel, prompt: list[int], settings, length: int) -> dict[tuple[int, ...], float]:
    """The exact law of the first tokens: plain decoding, forced along every text it can spell."""
    law: dict[tuple[int, ...], float] = {(): 1.0}
    shown = replace(settings, level="default")
    for depth in range(length):
        longer = {}
        for text, mass in law.items():
            one = replace(shown, max_new_tokens=depth + 1)
            ids, probs = _plain_step(lm, prompt, one, dict(enumerate(text)))[-1]
            total = sum(probs)
            longer |= {(*text, token): mass * p / total for token, p in zip(ids, probs, strict=True) if p > 0}
        law = longer
    return law


def _count(lm: LanguageModel, decoder: Decoder, prompt: list[int], settings, seeds: range, progress) -> Counter:
    """How often runs of these seeds spell each text; at least a hundred of them, however they are interrupted."""
    start = decoder.start(lm, prompt, settings)
    if len(prompt) > 1:
        decoder.step(start)
    found: Counter = Counter()
    bar = tqdm(seeds, disable=progress is not True, desc="lossless", unit="run")
    try:
        for done, number in enumerate(bar):
            if callable(progress) and progress(done, len(seeds)) and done >= 100:
                break
            state: State = start.fork()
            state.settings = replace(settings, seed=settings.seed + 1 + number)
            while not state.ended:
                decoder.step(state)
            found[tuple(state.new_tokens)] += 1
    except KeyboardInterrupt:
        if found.total() < 100:
            raise
    return found


def _p_value(found: Counter, law: dict[tuple[int, ...], float]) -> float:
    """Of Pearson's chi-square; texts expected less than five times are pooled, impossible ones must not occur."""
    if any(text not in law for text in found):
        return 0.0
    n = found.total()
    cells, pooled = [], [0.0, 0.0]
    for text, p in law.items():
        if n * p < 5:
            pooled = [pooled[0] + found[text], pooled[1] + n * p]
        else:
            cells.append((found[text], n * p))
    if pooled[1]:
        cells.append(tuple(pooled))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    degrees = torch.tensor(max(1, len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees, torch.tensor(statistic / 2, dtype=torch.float64)))
