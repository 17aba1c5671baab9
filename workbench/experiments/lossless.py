"""The losslessness meter: what a decoder guarantees, against what it does on a model, in one call.

Four gates. Greedy texts are compared with plain decoding's, token by token; a difference where the model itself hardly
prefers one token is named numeric. Sampled texts are compared seed by seed. Where seeds differ, thousands of short
runs, each longer than the deepest draft, are counted twice over (`counting.py`): cut to the likeliest tokens, against
the exact distribution of whole texts; and as they are, place by place, against plain decoding's distribution of their
own prefix.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from workbench.decoders import Autoregressive, Decoder
from workbench.engine.bundle import together
from workbench.engine.distribution import Distribution
from workbench.engine.model import LanguageModel
from workbench.engine.prompt import Prompt, encode_prompt, prompts_of
from workbench.engine.settings import Settings, make_settings
from workbench.errors import BadInput
from workbench.experiments.counting import Found, Places, Texts
from workbench.models.loading import load
from workbench.rounds import Round, State
from workbench.session import check_decoder
from workbench.training.prompts import held_out_prompts
from workbench_kernels.noise import gumbel

SIGNIFICANCE = 1e-4  # of a verdict: half of it for each of the two counts
CERTAIN = 1e-8  # below it no second seeds are asked
STRENGTH = {"lossy": 0, "distribution": 1, "seeded": 2, "exact": 2, "numeric": 2}
HOLDS = {
    True: "the guarantee holds",
    False: "THE GUARANTEE DOES NOT HOLD",
    None: "a distribution of its own: nothing to hold",
}
TIES = {torch.float64: 1e-9, torch.float32: 1e-3}  # nats between the best two; half precisions: two ulps of a logit
HALF_TIE = 0.13
BEGINNING = 64  # tokens of the first prompt that the counted runs go on from
WIDTH = 2  # likeliest tokens at every place that the cut runs draw from
TOGETHER = 8  # seeds whose runs share forwards
SHORTEST, CUT, LONGEST = 6, 8, 32  # tokens of a counted run; of a cut one at most; at most
FEWEST = 100  # runs, however soon the count is ended


@dataclass(frozen=True)
class Verdict:
    """What `lossless` found; `str()` is the report.

    greedy: `exact`, `numeric` (texts part only at near-ties) or `lossy`; `greedy_note` tells where they part. sampled:
    `seeded`, `distribution` or `lossy`, None where the decoder refuses to sample. guarantee_greedy, guarantee_sampled:
    what the decoder itself says.

    Of the counted runs (None where seeds decided): runs, how many, once cut and as many uncut. Cut to the `width`
    likeliest tokens, `length` tokens each, over `cells` texts: p_value, tv, kl_nats; tv_noise, kl_noise are what a
    perfect decoder would show on average, tv_detectable is what would have shown. Uncut, `uncut_length` tokens each:
    uncut_p_value; uncut_tv and uncut_tv_detectable are of the ranks that tokens have at one place.
    """

    decoder: str
    guarantee_greedy: str
    greedy: str
    greedy_note: str
    guarantee_sampled: str | None
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
    length: int | None = None
    width: int | None = None
    tv_detectable: float | None = None
    uncut_length: int | None = None
    uncut_p_value: float | None = None
    uncut_tv: float | None = None
    uncut_tv_detectable: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether what was found is at least what is claimed; None for a decoder with a distribution of its own."""
        pairs = [(self.guarantee_greedy, self.greedy), (self.guarantee_sampled, self.sampled)]
        known = [(guarantee, found) for guarantee, found in pairs if found is not None]
        if any(guarantee == "own" for guarantee, _ in known):
            return None
        return all(STRENGTH[found] >= STRENGTH[guarantee] for guarantee, found in known)

    @property
    def badge(self) -> str:
        """The weaker of the two findings, as the one word to show."""
        return min(filter(None, (self.greedy, self.sampled)), key=STRENGTH.__getitem__)

    def table(self) -> pd.DataFrame:
        """The figures, one per row."""
        facts = asdict(self) | {"badge": self.badge, "holds": self.holds}
        return pd.DataFrame({"value": [str(v) for v in facts.values()]}, index=list(facts))

    def __str__(self) -> str:
        return (
            f"{self.decoder}: {self.badge} ({HOLDS[self.holds]})\n"
            f"  temperature 0: guarantees {self.guarantee_greedy}, found {self.greedy}: {self.greedy_note}\n"
            f"  sampling: guarantees {self.guarantee_sampled}, found {self.sampled}: {self.sampled_note}"
        )


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
    differ, half of them over the model's two likeliest tokens at every place, half uncut; the settings' own top-k,
    top-p and processors hold in both. They are two tokens longer than the deepest draft that the texts showed (6 to
    32 tokens; cut ones up to 8).
    progress: a bar, or a function of (runs done, runs to do) that is called as they are counted and ends the count by
    returning True.
    settings: as for `workbench.decode` (a cache stack, for one): plain decoding runs under the same.

    "distribution" means that no difference was seen; the verdict names the total variation that would have been seen.
    An honest decoder is found lossy less than once in ten thousand verdicts. Ctrl-C while counting gives the verdict of
    the runs done so far. Raises BadInput before any work.
    """
    decoder, lm = check_decoder(decoder), lm or load("embedded")
    prompts = [row["prompt"] for row in held_out_prompts(3)] if prompts is None else prompts_of(prompts)
    if not prompts or tokens < 1 or runs < FEWEST:
        raise BadInput(f"lossless: expected prompts, 1 or more tokens and 100 or more runs; got {tokens=}, {runs=}")
    ids = [encode_prompt(lm, prompt)[0] for prompt in prompts]
    base = make_settings(lm, max_new_tokens=tokens, level="off", seed=seed, **settings)
    greedy = replace(base, sampling=replace(base.sampling, temperature=0.0))
    warm = replace(base, sampling=replace(base.sampling, temperature=temperature))
    facts: dict[str, Any] = {"decoder": decoder.declared_name, "tokens": tokens}
    facts["guarantee_greedy"] = decoder.guarantee(greedy.sampling)
    for prompt in ids:
        decoder.start(lm, prompt, greedy)
    try:
        decoder.start(lm, ids[0], warm)
        facts["guarantee_sampled"] = decoder.guarantee(warm.sampling)
    except BadInput as error:
        facts |= {"guarantee_sampled": None, "sampled": None, "sampled_note": f"refused: {error}"}
    facts["greedy"], facts["greedy_note"], deepest = _compared(lm, decoder, ids, greedy)
    if facts["guarantee_sampled"] is None:
        return Verdict(**facts)
    found, note, depth = _compared(lm, decoder, ids, warm)
    if found == "exact":
        return Verdict(**facts, sampled="seeded", sampled_note=note)
    if found == "numeric" and facts["guarantee_sampled"] == "seeded":
        return Verdict(**facts, sampled="numeric", sampled_note=note)
    counted = _counted(lm, decoder, ids[0][-BEGINNING:], warm, runs, max(deepest, depth), progress)
    if facts["guarantee_sampled"] == "seeded":
        counted["sampled_note"] = f"{note}; {counted['sampled_note']}"
    return Verdict(**facts, **counted)


def _text(decoder: Decoder, state: State) -> tuple[list[int], int]:
    """What a decoder spells from a state on, and the most tokens that one of its rounds drafted in a row."""
    deepest = 0
    while not state.ended:
        step = decoder.step(state)
        deepest = max(deepest, step.depth, step.emitted - 1)
    return state.new_tokens, deepest


def _compared(
    lm: LanguageModel, decoder: Decoder, prompts: list[list[int]], settings: Settings
) -> tuple[str, str, int]:
    """`exact`, `numeric` or `lossy`, where the texts part and by how much the model prefers its own choice there, and
    the deepest draft."""
    verdict, note, deepest, equal = "exact", "", 0, 0
    for number, prompt in enumerate(prompts):
        (plain, _), (found, depth) = (
            _text(one, one.start(lm, prompt, settings)) for one in (Autoregressive(), decoder)
        )
        deepest, equal = max(deepest, depth), equal + len(plain)
        if plain == found:
            continue
        pairs = zip(plain, found, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(plain), len(found)))
        gap, apart = _margin(lm, prompt, plain[:at], settings)
        tie = gap <= TIES.get(lm.dtype, HALF_TIE)
        note = f"prompt {number} parts at token {at}, where the best two tokens are {gap:.1e} nats apart"
        if not settings.sampling.greedy:
            note += " with the seed's noise"
        note += f" (p differs by {apart:.1e})" + (": a near-tie, decided by rounding" if tie else "")
        verdict = "numeric" if tie else "lossy"
        if not tie:
            break
    same = (
        f"{len(prompts)} of {len(prompts)} texts of {settings.max_new_tokens} tokens equal plain decoding's"
        f"{'' if settings.sampling.greedy else ', seed by seed'}"
        f" (95% sure that fewer than {min(1, 3 / max(1, equal)):.1%} of the tokens differ)"
    )
    return verdict, note or same, deepest


def _margin(lm: LanguageModel, prompt: list[int], text: list[int], settings: Settings) -> tuple[float, float]:
    """Nats between the two tokens that plain decoding likes best after a text, by the numbers that it compares, and the
    difference of their probabilities in the next-token distribution."""
    settings = replace(settings, force={})
    dist = _distributions(_ready(Autoregressive(), lm, prompt, settings), text)
    row = dist.scores[-1].double()
    if not settings.sampling.greedy:
        ids = torch.arange(len(row), device=row.device)
        row = row + gumbel(settings.seed, "target", len(prompt) + len(text), ids)
    best = row.topk(min(2, len(row)))
    if len(best.values) < 2:
        return math.inf, 1.0
    first, second = best.indices.tolist()
    p = dist.raw[-1].double().exp()
    return float(best.values[0] - best.values[1]), float((p[first] - p[second]).abs())


def _ready(decoder: Decoder, lm: LanguageModel, prompt: list[int], settings: Settings) -> State:
    """A decoder's state at the end of a prompt, which all but its last token are read of."""
    state = decoder.start(lm, prompt, settings)
    if len(prompt) > 1:
        decoder.step(state)
    return state


@torch.inference_mode()
def _distributions(start: State, text: Sequence[int]) -> Distribution:
    """The distributions before each token of a text and after it, as plain decoding of this text from `start` comes to
    them."""
    state, logits = start.fork(), []
    state.tokens += text
    keeps = {"needs": frozenset({"logits"}), "observe": lambda state, r, start, out: logits.append(out.logits)}
    Round(state, "plain", SimpleNamespace(**keeps)).catch_up("target", len(state.tokens))
    tokens, first = state.tokens, len(start.tokens)
    return state.settings.sampling.dist(torch.cat(logits), lambda row: tokens[: first + row])


def _counted(
    lm: LanguageModel, decoder: Decoder, prompt: list[int], settings: Settings, runs: int, deepest: int, progress
) -> dict:
    """Two counts of short runs, with more seeds pooled in where the first are unlucky."""
    length, sampling = min(LONGEST, max(SHORTEST, deepest + 2), lm.context - len(prompt)), settings.sampling
    uncut = replace(settings, max_new_tokens=length, eos_ids=frozenset(), stop=(), force={}, level="off")
    width = min(WIDTH, sampling.top_k or WIDTH, lm.vocab_size)
    cut = replace(uncut, max_new_tokens=min(length, CUT), sampling=replace(sampling, top_k=width))
    n, tie = runs // 2, TIES.get(lm.dtype, HALF_TIE)
    narrow, wide = (_ready(Autoregressive(), lm, prompt, settings) for settings in (cut, uncut))
    masks = narrow.settings.sampling.masks

    def over(prefix: Sequence[int]) -> bool:
        return masks is not None and masks.allowed([*prompt, *prefix]) is None

    texts = Texts(lambda prefix: _distributions(narrow, prefix), cut.max_new_tokens, n, tie, over)
    places, one = Places(prompt, tie, length), SIGNIFICANCE / 2
    starts = [_ready(decoder, lm, prompt, settings) for settings in (cut, uncut)]

    def run(start: State, seed: int) -> list[int]:
        state = start.fork()
        state.settings = replace(state.settings, seed=settings.seed + 1 + seed)
        return _text(decoder, state)[0]

    def count(seeds: range) -> tuple[Found, Found]:
        """Two runs a seed, some seeds at once; fifty seeds at least, if somebody ends the count."""
        bar = tqdm(total=len(seeds), disable=progress is not True, desc="lossless", unit=" pairs of runs")
        try:
            for done in range(0, len(seeds), TOGETHER):
                if callable(progress) and progress(2 * done, 2 * len(seeds)) and 2 * done >= FEWEST:
                    break
                some = seeds[done : done + TOGETHER]
                found = together([partial(run, start, seed) for seed in some for start in starts])
                for short, long in zip(found[::2], found[1::2], strict=True):
                    texts.add(short)
                    places.add(long, _distributions(wide, long[:-1]))
                bar.update(len(some))
        except KeyboardInterrupt:
            if 2 * len(places.runs) < FEWEST:
                raise
        return texts.test(one), places.test(one)

    whole, ranks = count(range(n))
    if CERTAIN < min(whole.p_value, ranks.p_value) <= one:
        whole, ranks = count(range(n, 2 * n))
    n = len(places.runs)
    note = (
        f"{n} runs of {cut.max_new_tokens} tokens over the {width} likeliest, {whole.cells} texts: "
        f"p = {whole.p_value:.2g}, total variation {whole.tv:.3f} (noise alone {whole.noise:.3f}, "
        f"{_shows(whole)}), KL {whole.kl:.3f} nats; {n} runs of {length} tokens uncut: "
        f"p = {ranks.p_value:.2g} ({_shows(ranks)} at any place)"
    )
    return {
        "sampled": "distribution" if min(whole.p_value, ranks.p_value) > one else "lossy",
        "sampled_note": note,
        **{"runs": n, "cells": whole.cells, "length": cut.max_new_tokens, "width": width, "uncut_length": length},
        **{"tv_noise": whole.noise, "kl_nats": whole.kl, "kl_noise": (whole.cells - 1) / (2 * n)},
        **{"p_value": whole.p_value, "tv": whole.tv, "tv_detectable": whole.detectable},
        **{"uncut_p_value": ranks.p_value, "uncut_tv": ranks.tv, "uncut_tv_detectable": ranks.detectable},
    }


def _shows(found: Found) -> str:
    sure = found.detectable < 1
    return f"from {found.detectable:.2f} on it shows" if sure else "too few runs to be sure of a difference"
