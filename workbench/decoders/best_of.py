"""Best of n: several samples side by side, of which the likeliest becomes the text."""

from dataclasses import dataclass

from workbench.control.scorers.base import Scorer
from workbench.declare import register, setting
from workbench.decoders.base import Decoder
from workbench.engine.model import LanguageModel
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings, refuse_stateful
from workbench.rounds import Round, State, search
from workbench_kernels.noise import seed_of_sample


@register("decoder", "best_of")
@dataclass(frozen=True)
class BestOf(Decoder):
    """Sample i is what plain decoding writes with `sample=i`; of the n texts that with the highest log-probability
    wins, the sum over its tokens or the mean, under the next-token distribution; or that which a `scorer` puts first.

    All samples read one prompt, and share a forward. The text appears once the last of them has ended. At temperature 0
    there is one sample, the greedy text.

    Source: `best_of` of OpenAI's completions and vLLM's sampling parameters (https://github.com/vllm-project/vllm).
    """

    n: int = setting(4, ge=1, le=64, help="samples")
    by: str = setting("sum", choices=("sum", "mean"), help="log-probability of the text, or per token")
    scorer: Scorer | None = setting(None, family="scorer", help="what ranks the texts, once all have ended")

    searches = True
    verified = ("equality with plain decoding of every sample",)

    def guarantee(self, sampling: Sampling) -> str:
        return "exact" if sampling.greedy else "seeded" if self.n == 1 else "own"

    def check(self, lm: LanguageModel, settings: Settings) -> None:
        refuse_stateful(settings.sampling.processors, lm.vocab_size, lm.device, "it is called for every sample")
        if self.scorer:
            self.scorer.check(lm, settings)

    def decode_round(self, state: State, r: Round) -> None:
        r.step.mode = "search"
        live = [one for one in state.hypotheses.values() if one.fate == "live"] or [search.begin(state, "sample")]
        ended = [one for one in state.hypotheses.values() if one.fate == "finished"]
        dist = search.read(r, live)
        numbers = [one.state.memory["sample"] for one in live] if state.hypotheses else range(self.n)
        numbers = numbers[:1] if r.settings.sampling.greedy else numbers
        picks = []
        for place, number in enumerate(numbers):
            row = place if state.hypotheses else 0
            seed = seed_of_sample(r.settings.seed, r.settings.sample + number)
            forced = r.forced(len(live[row].state.tokens))
            token = dist.choose(row, seed, len(live[row].state.tokens)) if forced is None else forced
            picks.append((live[row], row, token))
        start = live[0].state.memory["from"] if state.hypotheses else len(state.new_tokens)
        grown = search.grow(r, dist, picks)
        for one, number in zip(grown, numbers, strict=True):
            one.state.memory |= {"sample": number, "from": start}
            one.score = one.logp / (1 if self.by == "sum" else len(one.state.new_tokens) - start)
        every = [*ended, *grown]
        done = all(one.fate == "finished" for one in every)
        if done and self.scorer:
            self.scorer.rank(r, sorted(every, key=lambda one: one.state.memory["sample"]))
        every.sort(key=lambda one: (-one.score, one.state.memory["sample"]))
        state.hypotheses = {one.id: one for one in every}
        if done:
            search.win(r, every[0])
