"""Entropy Adaptive Decoding: a small model writes, a large one takes over where the text is uncertain."""

from dataclasses import dataclass

from workbench.control.gate import Gate
from workbench.declare import register, setting
from workbench.decoders.base import Decoder
from workbench.engine.distribution import Distribution
from workbench.engine.model import LanguageModel
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings
from workbench.engine.vocabulary import cut
from workbench.models.loading import companion
from workbench.rounds import Round, State


@register("decoder", "entropy_adaptive")
@dataclass(frozen=True)
class EntropyAdaptive(Decoder):
    """Switch models by the mean of the last `window` entropies (bits): above `threshold` the large one writes, or above
    its `quantile` of the run so far.

    A switch is allowed `dwell` tokens after the last; the window lives on across it. The model that takes over first
    reads the tokens the other wrote. There is no verification: the output is lossy by design.

    Source: "Entropy Adaptive Decoding: Dynamic Model Switching for Efficient Inference"
    (https://arxiv.org/abs/2502.06833; no official code found). Reconstructed, hence adjustable: `dwell`, which model is
    monitored while the large one is active, and that the window is kept at a switch.
    """

    small: str = setting("embedded-draft", model=True, help="the small model: name, hub id or directory")
    threshold: float = setting(3.0, ge=-1, unit="bits", help="mean entropy above which the large model writes")
    window: int = setting(5, ge=1, le=256, unit="tokens", help="how many entropies are averaged")
    dwell: int = setting(10, ge=0, unit="tokens", help="least number of tokens between switches")
    monitor: str = setting(
        "active", choices=("active", "small"), help="whose entropy is watched; small costs a forward"
    )
    begin: str = setting("small", choices=("small", "large"), help="who writes first")
    quantile: float | None = setting(None, ge=0, le=1, help="in place of the threshold: a quantile of the run so far")

    def guarantee(self, sampling: Sampling) -> str:
        return "lossy"

    def runners(self, lm: LanguageModel) -> dict[str, LanguageModel]:
        return {"target": lm, "draft": companion(lm, self.small)}

    def check(self, lm: LanguageModel, settings: Settings) -> None:
        companion(lm, self.small)

    def first(self, state: State) -> tuple[str, ...]:
        return ("draft",) if self.begin == "small" or self.monitor == "small" else ("target",)

    def decode_round(self, state: State, r: Round) -> None:
        def distribution_of(role: str) -> Distribution:
            return r.dist(cut(r.advance(role).logits, state.runners["target"].model.vocab_size))

        small_fits = state.fits("draft")  # else the text has outgrown the small model's context
        active = state.memory.get("active", "draft" if self.begin == "small" else "target") if small_fits else "target"
        gate = Gate(threshold=self.threshold, quantile=self.quantile, window=self.window, dwell=self.dwell, unit="bits")
        watched = "draft" if self.monitor == "small" and small_fits else active
        dist = distribution_of(watched)
        reading = gate.read(dist, 0, state.memory, "entropy_adaptive", self.begin == "large")
        switched = reading.changed and small_fits
        if switched:
            active = "target" if reading.open else "draft"
            lag = len(state.tokens) - 1 - state.runners[active].store.length
            r.decide("entropy_adaptive", reading, f"switch to {active}", cost={"catch_up_tokens": lag})
        dist = dist if active == watched else distribution_of(active)
        token = r.choose(dist, 0, len(state.tokens))
        r.append(dist, [0], [token], ["target" if active == "target" else self.small], model=active)
        on_large = state.memory.get("on_large", 0) + (active == "target")
        state.memory |= {"active": active, "on_large": on_large}
        r.step.figures = {
            "active": active,
            "entropy_bits": reading.value,
            "mean_entropy_bits": reading.mean,
            "switched": switched,
            "share_on_large": on_large / len(state.new_tokens),
        }
