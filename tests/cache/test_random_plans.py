"""Random plans against a reference that does them slot by slot: keep, merge, bias, unread, cold and bits, mixed."""

from dataclasses import dataclass, field

import pytest
import torch

import workbench as wb
from tests.cache.conftest import PROMPT, feed
from tests.rounding import close
from workbench.cache import apply
from workbench.cache.codecs.base import Quantizer
from workbench.cache.plan import CacheMethod, Merge, Plan

TEXT = PROMPT * 8


@dataclass(frozen=True)
class Random(CacheMethod):
    """Keeps, merges and biases at random, and does the same to copies of its own, slot by slot."""

    seed: int = 0
    copies: dict = field(default_factory=dict)  # layer -> head -> {position: (key, value)}
    biases: dict = field(default_factory=dict)  # layer -> head -> {position: bias}
    aside: dict = field(default_factory=dict)  # (layer, head, "unread" or "cold") -> positions

    declared_name = "test-random"
    needs = frozenset({"mass"})
    interval, budget, newest, ragged = 32, 64, 32, True

    def plan(self, view, budget):
        draw = torch.Generator().manual_seed(1000 * self.seed + 10 * view.length + view.layer)
        heads, n = view.positions.shape
        coin = torch.rand(heads, n, generator=draw)
        keep = view.live & (coin < torch.rand(heads, 1, generator=draw))
        keep[:, -self.newest :] = True
        m = int(torch.randint(1, 6, (), generator=draw))
        source = torch.stack(
            [live.nonzero()[:, 0][torch.randperm(int(live.sum()), generator=draw)[:m]] for live in view.live]
        )
        target = torch.stack(
            [stays.nonzero()[:, 0][torch.randint(int(stays.sum()), (m,), generator=draw)] for stays in keep]
        )
        none = torch.rand(heads, m, generator=draw) < 0.3
        source, target = (x.masked_fill(none, -1) for x in (source, target))
        weights = torch.rand(2, heads, m, generator=draw)
        self._by_hand(view, keep, source, target, *weights)
        bias = torch.randn(heads, n, generator=draw) if torch.rand((), generator=draw) < 0.7 else None
        for head, places in enumerate(view.positions.tolist()):
            held = self.biases.setdefault(view.layer, {}).get(head, {})
            new = held if bias is None else dict(zip(places, bias[head].tolist(), strict=True))
            kept = {places[column] for column in keep[head].nonzero()[:, 0].tolist()}
            self.biases[view.layer][head] = {at: value for at, value in new.items() if at in kept}
        aside = {}
        for name in ("unread", "cold"):
            slots = keep & (torch.rand(heads, n, generator=draw) < torch.rand(heads, 1, generator=draw) * 2)
            slots[:, -self.newest :] = False
            aside[name] = slots if torch.rand((), generator=draw) < 0.6 else None
            for head, places in enumerate(view.positions):
                held = self.aside.get((view.layer, head, name), set())
                new = held if aside[name] is None else set(places[slots[head]].tolist())
                self.aside[view.layer, head, name] = new & set(places[keep[head]].tolist())
        return Plan(keep, Merge(source, target, *weights), bias, **aside)

    def _by_hand(self, view, keep, source, target, weight_k, weight_v):
        keys, values = view.keys(), view.values()
        layer = self.copies.setdefault(view.layer, {})
        for head in range(len(keep)):
            held = layer.setdefault(head, {})
            for column in view.live[head].nonzero()[:, 0].tolist():
                held.setdefault(int(view.positions[head, column]), (keys[head, column], values[head, column]))
            places = view.positions[head].tolist()
            before, sums = dict(held), {}
            for s, t, *weights in zip(
                source[head].tolist(), target[head].tolist(), weight_k[head], weight_v[head], strict=True
            ):
                if s >= 0:
                    at = sums.setdefault(places[t], [[1.0, 0.0], [1.0, 0.0]])
                    for i, weight in enumerate(weights):
                        if s == t:
                            at[i][0] = weight
                        else:
                            at[i][1] = at[i][1] + weight * before[places[s]][i]
            for place, parts in sums.items():
                held[place] = tuple(own * before[place][i] + more for i, (own, more) in enumerate(parts))
            kept = {places[c] for c in keep[head].nonzero()[:, 0].tolist()}
            for place in set(held) - kept:
                del held[place]


@dataclass(frozen=True)
class RandomBits(Quantizer):
    """Two widths, drawn for every slot that leaves the run, and noted."""

    chosen: dict = field(default_factory=dict)  # layer -> head -> {position: bits}

    declared_name = "test-random-bits"
    residual, interval, on_device = 32, 32, None
    shares = (0.5, 0.5)

    def ladder(self, layer):
        return (16, 16), (8, 8)

    def classes(self, view, leaving):
        draw = torch.Generator().manual_seed(view.length + view.layer)
        answer = torch.randint(2, view.live.shape, generator=draw)
        for head, asked in enumerate(leaving):
            held = self.chosen.setdefault(view.layer, {}).setdefault(head, {})
            for column in asked.nonzero()[:, 0].tolist():
                held[int(view.positions[head, column])] = (16, 8)[answer[head, column]]
        return answer


def stored(store, layer: int, head: int) -> dict[int, tuple[torch.Tensor, torch.Tensor, float, int]]:
    """Position -> key, value, bias and bits (0 in the run), as the store holds them."""
    state, run = store._layers[layer], store._run
    where = state.positions(store.held, store.length, run.k[layer].device)
    biases = state.wide("bias", state.slots + store.held)
    biases = [0.0] * (state.slots + store.held) if biases is None else biases[head].tolist()
    found = {
        int(p): (run.k[layer][head, i], run.v[layer][head, i], biases[state.slots + i], 0)
        for i, p in enumerate(where[min(head, len(where) - 1)])
    }
    if state.page_table is not None:
        k, v, places, live = state.page_table.decode()
        size, pages = state.page_table.page_size, state.page_table.pages[head]
        found |= {
            int(places[head, i]): (k[head, i], v[head, i], biases[i], pages[i // size].codec.bits[0])
            for i in live[head].nonzero()[:, 0].tolist()
        }
    return found


def aside(store, layer: int, head: int, name: str) -> set[int]:
    """Positions in pages that are unread or cold."""
    state = store._layers[layer]
    where, live = state.page_table.places()
    slots = torch.zeros_like(live) if getattr(state, name) is None else getattr(state, name)[:, : state.slots]
    assert not (slots & ~live).any()
    return set(where[head][slots[head]].tolist())


@pytest.mark.parametrize(
    "quantizer",
    [None, wb.KIVI(bits=8), wb.KIVI(bits=8, page_size=64, residual=0, raw_keys=True), "mixed"],
    ids=["raw", "8 bits", "64 slots, raw keys", "mixed"],
)
@pytest.mark.parametrize("seed", range(6))
def test_random_plans_do_what_they_say_slot_by_slot(small, seed, quantizer):
    """Raw pages to the last bit of rounding, coded ones to their step: each is rounded where it was packed."""
    method, quantizer = Random(seed=seed), RandomBits() if quantizer == "mixed" else quantizer
    store = wb.Stack(method, quantizer).new_store(small, 40)
    feed(small, store, TEXT[:224])
    for layer, heads in method.copies.items():
        for head, wanted in heads.items():
            found = stored(store, layer, head)
            assert set(found) == set(wanted)
            for place in wanted:
                for mine, theirs in zip(found[place][:2], wanted[place], strict=True):
                    reach = 0.3 * theirs.abs().max() if quantizer else None
                    ok = (mine - theirs).abs().max() <= reach if quantizer else close(mine, theirs, terms=64)
                    assert ok, (layer, head, place)
                assert abs(found[place][2] - method.biases[layer][head].get(place, 0.0)) < 1e-6
                if isinstance(quantizer, RandomBits):
                    assert found[place][3] in (0, quantizer.chosen[layer][head].get(place)), (layer, head, place)
            table = store._layers[layer].page_table
            where, live = table.places()
            size, paged = table.page_size, set(where[head][live[head]].tolist())
            for name in ("unread", "cold"):
                assert aside(store, layer, head, name) == method.aside[layer, head, name] & paged
            for number, page in enumerate(table.pages[head]):
                mine = slice(number * size, number * size + size)
                places = set(where[head, mine][live[head, mine]].tolist())
                assert page.arena.host == (places <= method.aside[layer, head, "cold"])
    assert store.ledger()["live_slots"][0] == round(sum(map(len, method.copies[0].values())) / 2)


def test_a_merge_that_is_not_done_shows(small, monkeypatch):
    """Negative control: the executor forgets the merged values."""
    monkeypatch.setattr(apply, "_merge", lambda work, *rest: torch.zeros_like(work.live))
    with pytest.raises(AssertionError):
        for seed in range(6):
            test_random_plans_do_what_they_say_slot_by_slot(small, seed, None)
