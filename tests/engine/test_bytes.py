"""Bytes are those of the storages: a walk over everything a state reaches, blind to the ledger, must agree with it."""

import dataclasses
import types
import weakref
from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.table import DECODERS
from workbench.rounds.costs import held_bytes, ledgers

OPAQUE = (str, bytes, int, float, bool, type(None), type, types.ModuleType, weakref.ref, torch.dtype, torch.device)


def walk(state: Any) -> int:
    """Bytes of all distinct storages reachable from a state, but for the models' own weights and tokenizers."""
    models = {id(runner.model) for runner in state.runners.values()}
    seen, sizes, queue = set(models), {}, [state]
    while queue:
        thing = queue.pop()
        if isinstance(thing, OPAQUE) or id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(thing, np.ndarray):
            sizes[thing.__array_interface__["data"][0]] = thing.nbytes
        elif isinstance(thing, dict | types.MappingProxyType):
            queue += [*thing.keys(), *thing.values()]
        elif isinstance(thing, list | tuple | set | frozenset):
            queue += thing
        elif isinstance(thing, types.FunctionType):
            queue += [cell.cell_contents for cell in thing.__closure__ or ()]
        else:
            names = {slot for cls in type(thing).__mro__ for slot in getattr(cls, "__slots__", ())}
            queue += [getattr(thing, name) for name in names if hasattr(thing, name)]
            queue += list(getattr(thing, "__dict__", {}).values())
    return sum(sizes.values())


def ledger(state: Any) -> int:
    kinds = {"payload", "staging", "pad"}
    total = 0
    for columns in ledgers(state).values():
        assert set(columns) == kinds | {"live_slots", "logical_length"}
        total += sum(sum(columns[kind]) for kind in kinds)
    return total


ROUNDS = 12


@pytest.mark.parametrize("name", DECODERS)
def test_the_walk_equals_the_ledger_and_the_trace_at_every_round(lm, held_out, name):
    row = DECODERS[name]
    temperature = row.temperature if row.sampled else 0.0
    session = wb.Session(lm, held_out[3], row.make("embedded-draft"), temperature=temperature, max_new_tokens=200)
    for done, _ in enumerate(session):
        state = session.state
        found = walk(state)
        assert found == ledger(state) + held_bytes(state.memory) > 0
        assert session.trace.rounds["cache_bytes"].iloc[-1] == found
        if done == ROUNDS // 2:
            assert walk(state.fork()) == found  # a fork weighs the same, and brings nothing of its own
        if done == ROUNDS:
            break
    assert session.rounds > ROUNDS
    for state in (session.state, *(one.state for one in session.state.hypotheses.values())):
        for runner in state.runners.values():
            assert runner.store.length <= len(state.tokens) - 1 and runner.store.staged == 0


PLANTS = {
    "in memory": lambda state, extra: state.memory.update(hoard={"deep": [extra]}),
    "in the store": lambda state, extra: setattr(state.runners["target"].store, "hoard", extra),
    "in a runner": lambda state, extra: state.runners.update(
        extra=dataclasses.replace(state.runners["target"], store=_Hoard(state.runners["target"].store, extra))
    ),
    "in a closure": lambda state, extra: state.memory.update(later=lambda: extra),
}


class _Hoard:
    """A store that holds more than it says."""

    def __init__(self, store, extra):
        self._store, self._extra = store, extra

    def ledger(self):
        return {k: [0] for k in self._store.ledger()}


@pytest.mark.parametrize("where", PLANTS)
def test_one_planted_tensor_makes_the_walk_differ(lm, held_out, where):
    session = wb.Session(lm, held_out[0], wb.Speculative(), max_new_tokens=16)
    session.step()
    state = session.state.fork()
    assert walk(state) == ledger(state)
    PLANTS[where](state, torch.zeros(7))
    assert walk(state) == ledger(state) + 28
