"""A search for tests: most of its rounds append nothing."""

from dataclasses import dataclass

import workbench as wb
from workbench.declare import setting


@dataclass(frozen=True)
class Search(wb.Decoder):
    """Looks ahead for `ahead` rounds, a token each, then appends the best hypothesis and the token behind it.

    A hypothesis that contradicts a forced token is dropped, and one has to be left: so it fails where a branch leaves
    from a round that had looked beyond its change.
    """

    ahead: int = setting(2, ge=1, help="rounds that append nothing")
    width: int = setting(3, ge=1, help="hypotheses kept")

    declared_name = "search-of-tests"

    def guarantee(self, sampling):
        return "own"

    def decode_round(self, state, r):
        r.step.mode = "search"
        number, found = state.memory.get("search", (1, ((0, 0, (), 0.0),)))
        first = len(state.tokens)
        forced = {place: r.forced(first + place) for place in range(self.ahead)}
        found = [one for one in found if all(forced[k] in (None, token) for k, token in enumerate(one[2]))]
        assert found, "every hypothesis contradicts a forced token"
        depth = len(found[0][2])
        if depth == self.ahead:
            best = max(found, key=lambda one: one[3])[2]
            self.note(r, [(*one, "won" if one[2] == best else "pruned") for one in found])
            dist = r.dist(self.read(state, r, best).logits[-depth - 1 :], lambda row: [*state.tokens, *best[:row]])
            tokens = [*best, r.choose(dist, depth, first + depth)]
            r.append(dist, list(range(depth + 1)), tokens, ["target"] * (depth + 1))
            r.commit("target", range(first - state.runners["target"].store.length))
            state.memory["search"] = (number, ((0, 0, (), 0.0),))
            return
        children = []
        for parent, _, tokens, logp in found:
            raw = r.dist(self.read(state, r, tokens).logits[-1:], lambda row, h=tokens: [*state.tokens, *h]).raw[0]
            r.commit("target", [])
            best = raw.topk(2).indices.tolist() if forced[depth] is None else [forced[depth]]
            for token in best:
                children.append((number, parent, (*tokens, token), logp + raw[token].item()))
                number += 1
        children.sort(key=lambda one: -one[3])
        self.note(r, [(*one, "live" if k < self.width else "pruned") for k, one in enumerate(children)])
        state.memory["search"] = (number, tuple(children[: self.width]))

    @staticmethod
    def read(state, r, tokens):
        """A forward over what the cache lacks and a hypothesis."""
        start = state.runners["target"].store.length
        ids = [*state.tokens[start:], *tokens]
        return r.forward("target", ids, range(start, start + len(ids)))

    @staticmethod
    def note(r, found):
        if r.logging:
            new = len(r.state.new_tokens)
            ids, parents, tokens, logp, fates = map(list, zip(*found, strict=True))
            last = [one[-1] if one else None for one in tokens]
            r.step.hypotheses = {
                "id": ids, "parent": parents, "depth": [new + len(one) for one in tokens], "token_id": last,
                "text": [None if token is None else f"<{token}>" for token in last], "logp": logp, "score": logp,
                "role": ["beam"] * len(ids), "fate": fates,
            }  # fmt: skip
