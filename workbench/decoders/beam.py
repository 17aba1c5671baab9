"""Beam search: the likeliest texts of every length, as transformers searches them."""

from dataclasses import dataclass

import torch

from workbench.control.scorers.base import Scorer
from workbench.declare import register, setting
from workbench.decoders.base import Decoder
from workbench.engine.model import LanguageModel
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings, refuse_stateful
from workbench.errors import BadInput
from workbench.rounds import Hypothesis, Round, State, search


@register("decoder", "beam")
@dataclass(frozen=True)
class Beam(Decoder):
    """Go on with the `beams` likeliest texts of each length; of those that ended, the best by log-probability over
    length^`length_penalty` wins.

    A text that ends competes only where it is among the best `beams` of its length. The search stops when no beam can
    become better than the worst of `beams` ended texts: judged at its present length (`early_stopping="auto"`), or at
    the most that it may have ("never"); or as soon as there are so many ("always"). What all beams begin with is text
    at once. A `scorer` takes the place of the log-probability: of the likeliest texts of each length, twice as many as
    beams, those stay that it puts first, and the search stops as with "always".

    Source: beam search of transformers (`num_beams`, `length_penalty`, and `early_stopping`, which says False, "never"
    and True there; https://github.com/huggingface/transformers). Texts are equal where log-probabilities do not tie.
    """

    beams: int = setting(4, ge=1, le=64, help="texts that are kept")
    length_penalty: float = setting(1.0, ge=-10, le=10, help="power of the length that a log-probability is divided by")
    early_stopping: str = setting("auto", choices=("auto", "never", "always"), help="when the search may stop")
    scorer: Scorer | None = setting(None, family="scorer", help="what ranks the texts of each length")

    searches = True
    verified = ("equality with beam search of transformers",)

    def guarantee(self, sampling: Sampling) -> str:
        return "exact" if self.beams == 1 and not self.scorer and sampling.greedy else "own"

    def check(self, lm: LanguageModel, settings: Settings) -> None:
        if not settings.sampling.greedy:
            raise BadInput("beam: expected temperature=0, as beams are not drawn; or use best_of")
        refuse_stateful(settings.sampling.processors, lm.vocab_size, lm.device, "it is called for every beam")
        if self.scorer:
            self.scorer.check(lm, settings)

    def decode_round(self, state: State, r: Round) -> None:
        if self.beams == 1 and not self.scorer:  # as theirs
            dist = r.dist(r.advance("target").logits)
            r.append(dist, [0], [r.choose(dist, 0, len(state.tokens))], ["target"])
            return
        r.step.mode = "search"
        state.memory.setdefault("from", len(state.new_tokens) if "sum" not in state.memory else 0)
        live = [one for one in state.hypotheses.values() if one.fate == "live"] or [search.begin(state, "beam")]
        ended = [one for one in state.hypotheses.values() if one.fate == "finished"]
        dist = search.read(r, live, logp=True)  # as theirs
        sums = torch.tensor([one.state.memory.get("sum", 0.0) for one in live], device=dist.raw.device)
        totals = dist.scores.float() + sums[:, None]
        if (forced := r.forced(len(live[0].state.tokens))) is not None:
            own, raw = totals[:, forced], dist.raw[:, forced] + sums
            totals = torch.full_like(totals, -torch.inf)
            totals[:, forced] = torch.where(own > -torch.inf, own, raw)  # a processor may rule it out
        size = totals.shape[1]
        top = totals.flatten().topk(min(max(2, 1 + len(r.settings.eos_ids)) * self.beams, totals.numel()))
        best = [pair for pair in zip(top.values.tolist(), top.indices.tolist(), strict=True) if pair[0] > -torch.inf]
        grown = search.grow(r, dist, [(live[place // size], place // size, place % size) for _, place in best])
        length = len(grown[0].state.new_tokens) - state.memory["from"]
        for one, (total, _) in zip(grown, best, strict=True):
            one.state.memory["sum"] = one.known[0]["sum"] = total
            one.score = total / length**self.length_penalty
        if self.scorer:
            self.scorer.rank(r, grown)
            grown.sort(key=lambda one: -one.score)
        ended += [one for one in grown[: self.beams] if one.fate == "finished"]
        ended = sorted(ended, key=lambda one: -one.score)[: self.beams]
        live = [one for one in grown if one.fate == "live"]
        most = r.settings.max_new_tokens - state.memory["from"]
        done = not live or self._done(live[0].state.memory["sum"], ended, length, most)
        live = live[: self.beams]
        kept = {one.id for one in (*live, *ended)}
        for one in (*state.hypotheses.values(), *grown):
            one.fate = one.fate if one.id in kept else "pruned"
        state.hypotheses = {one.id: one for one in (*live, *ended, *grown)}
        if done:
            search.win(r, ended[0])
        elif last := search.settle(r, [*live, *ended]):
            state.memory["sum"] = last["sum"]  # where a search would begin from the text

    def _done(self, total: float, ended: list[Hypothesis], length: int, most: int) -> bool:
        """Whether no beam, the best of which has `total` at this length, can still become one of the ended texts."""
        if len(ended) < self.beams:
            return False
        if self.early_stopping == "always" or self.scorer:
            return True
        length = most if self.early_stopping == "never" and self.length_penalty > 0 else length
        return total / length**self.length_penalty <= ended[-1].score
