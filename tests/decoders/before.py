"""The rounds of three decoders as version 0.1 had them, frozen: what their texts are held to."""

import math

import torch

import workbench as wb
from workbench.engine.distribution import Distribution
from workbench.engine.sampling import Sampling
from workbench.engine.vocabulary import cut
from workbench.rounds import Round, State, search


class Switching(wb.EntropyAdaptive):
    def decode_round(self, state: State, r: Round) -> None:
        active = state.memory.get("active", "draft" if self.begin == "small" else "target")
        since = state.memory.get("since", self.dwell)
        dists: dict[str, Distribution] = {}

        def distribution_of(role: str) -> Distribution:
            if role not in dists:
                dists[role] = r.dist(cut(r.advance(role).logits, state.runners["target"].model.vocab_size))
            return dists[role]

        small_fits = state.fits("draft")
        if not small_fits:
            active = "target"  # the text has outgrown the small model's context
        watched = "draft" if self.monitor == "small" and small_fits else active
        raw = distribution_of(watched).raw[0]
        entropy = -(raw.exp() * raw.clamp_min(-1e4)).sum().item() / math.log(2)
        seen = (*state.memory.get("entropies", ()), entropy)[-self.window :]
        mean = sum(seen) / len(seen)
        wanted = "target" if mean > self.threshold or not small_fits else "draft"
        switched = wanted != active and since >= self.dwell
        if switched:
            lag = len(state.tokens) - 1 - state.runners[wanted].store.length
            r.step.decisions.append(
                {
                    "controller": "entropy_adaptive",
                    "signals": {"mean_entropy_bits": mean},
                    "threshold": self.threshold,
                    "action": f"switch to {wanted}",
                    "cost": {"catch_up_tokens": lag},
                }
            )
            active, since = wanted, 0
        dist = distribution_of(active)
        token = r.choose(dist, 0, len(state.tokens))
        r.append(dist, [0], [token], ["target" if active == "target" else self.small], model=active)
        on_large = state.memory.get("on_large", 0) + (active == "target")
        state.memory |= {"active": active, "since": since + 1, "entropies": seen, "on_large": on_large}
        r.step.figures = {
            "active": active,
            "entropy_bits": entropy,
            "mean_entropy_bits": mean,
            "switched": switched,
            "share_on_large": on_large / len(state.new_tokens),
        }


class Holding(wb.Mirostat):
    def decode_round(self, state: State, r: Round) -> None:
        mu = state.memory.get("mu", 2 * self.tau)
        own = Sampling(temperature=1.0, processors=r.settings.sampling.processors)
        whole = own.dist(r.advance("target").logits, lambda row: state.tokens)
        bits = whole.scores / -math.log(2)
        kept = bits <= mu
        kept[0, whole.best(0)] = True
        saturated = bool(kept.all())
        scores = whole.scores.masked_fill(~kept, -torch.inf).log_softmax(-1)
        dist = Distribution(whole.raw, scores, [() if saturated else ("mirostat",)])
        token = r.choose(dist, 0, len(state.tokens))
        surprise = (bits if self.feedback == "full" else scores / -math.log(2))[0, token].item()
        error = surprise - self.tau
        frozen = self.freeze and saturated and error < 0
        if not frozen:
            mu -= self.eta * error
        r.append(dist, [0], [token], ["target"])
        count, total = state.memory.get("count", 0) + 1, state.memory.get("total", 0.0) + surprise
        state.memory |= {"mu": mu, "count": count, "total": total}
        r.step.figures = {
            "mu_bits": mu,
            "surprise_bits": surprise,
            "mean_surprise_bits": total / count,
            "kept_mass": whole.scores[kept].exp().sum().item(),
            "saturated": saturated,
        }
        if not saturated:
            r.step.decisions.append(
                {"controller": "mirostat", "signals": {"mu_bits": mu}, "action": "cut", "threshold": mu}
            )


class Looking(wb.AdaDec):
    def decode_round(self, state: State, r: Round) -> None:
        dist, position = r.dist(r.advance("target").logits), len(state.tokens)
        raw = dist.raw[0]
        entropy = -(raw.exp() * raw.clamp_min(-1e4)).sum().item()
        token, pauses = r.choose(dist, 0, position), entropy >= self.threshold and r.forced(position) is None
        if pauses and self.candidates > 1 and self.lookahead:
            root = search.begin(state, "lookahead")
            ids = dist.scores[0].topk(min(self.candidates, len(raw))).indices.tolist()
            ahead = search.grow(r, dist, [(root, 0, id) for id in ids if dist.scores[0, id] > -float("inf")])
            first = [one.known[0]["token_id"] for one in ahead]
            for _ in range(self.lookahead):
                live = {place: one for place, one in enumerate(ahead) if one.fate == "live"}
                if not live:
                    break
                r.log_hypotheses(live.values())
                found = search.read(r, [*live.values()], "lookahead")
                picks = []
                for row, one in enumerate(live.values()):
                    given = r.forced(len(one.state.tokens))
                    picks.append((one, row, found.best(row) if given is None else given))
                for place, one in zip(live, search.grow(r, found, picks), strict=True):
                    ahead[place] = one
            for one in ahead:
                one.score = one.logp / (len(one.state.tokens) - position)
            best = max(range(len(ahead)), key=lambda place: ahead[place].score)
            for place, one in enumerate(ahead):
                one.fate = "won" if place == best else "pruned"
            r.log_hypotheses(ahead)
            r.step.decisions.append({
                "controller": "adadec", "signals": [{"name": "entropy", "value": entropy, "unit": "nats"}],
                "threshold": self.threshold, "action": "reranked" if first[best] != token else "kept",
                "alternatives": [[id, one.score] for id, one in zip(first, ahead, strict=True)],
            })  # fmt: skip
            token = first[best]
        r.append(dist, [0], [token], ["target"])
