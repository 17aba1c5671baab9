"""The round on the device against the ordinary one: the same steps, time travel, and reasons where it is not done.

On a CPU the device's code runs as it is; `test_device_copies.py` counts its copies, and captures it on a GPU.
"""

import gc
import weakref

import pytest
import torch

import workbench as wb
from tests.engine.device_cases import DECODERS, DRAFT, PROMPT, SAMPLINGS, llama, same_steps, speculative, steps
from tests.kernels.interpreter import needs_interpreter
from workbench.cache import PlainStore
from workbench.device import forward as device_round
from workbench.device import round as device
from workbench.device.sampling import DeviceSampling, fit
from workbench.device.store import StaticStore
from workbench.engine.sampling import Sampling
from workbench.engine.vocabulary import cut, known_only, widened
from workbench.errors import BadInput, NumericalError
from workbench.models.adapter import wrap


@pytest.fixture(scope="module")
def pair():
    """A small target; its draft, which agrees with it often, is registered under a name."""
    wb.register_model(DRAFT, wrap(llama(noise=0.15)))
    return wrap(llama())


@pytest.fixture(autouse=True)
def on_device(monkeypatch):
    """Device rounds on the CPU too."""
    monkeypatch.setenv(device.VARIABLE, "device")


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_the_step_is_that_of_the_ordinary_round(decoder, sampling, pair, monkeypatch):
    """Every column of every round: tokens, statistics, fates, p, q, lengths of both caches."""
    make, settings = DECODERS[decoder], SAMPLINGS[sampling]
    want, _ = steps(pair, make(), monkeypatch, "host", **settings)
    got, state = steps(pair, make(), monkeypatch, "device", **settings)
    same_steps(got, want)
    used = [step.forwards["implementation"][-1] for step in got[1:]]
    assert set(used) == {"device+sdpa"} and type(state.runners["target"].store) is StaticStore
    if decoder != "plain":
        assert 0 < sum(step.accepted for step in got) < sum(step.drafted for step in got)


def test_a_wrong_commit_does_not_pass(pair, monkeypatch):
    """The comparison above sees it when the accepted rows of a tree stay where they were drafted."""
    make = DECODERS["tree"]
    want, _ = steps(pair, make(), monkeypatch, "host", temperature=1.0)
    monkeypatch.setattr(device_round.DeviceRound, "_commit", lambda *_: None)
    got, _ = steps(pair, make(), monkeypatch, "device", temperature=1.0)
    with pytest.raises(AssertionError):
        same_steps(got, want)


def test_a_distribution_may_keep_fewer_tokens_than_the_tree_asks_for(pair, monkeypatch):
    """top_k=2 under four children: nodes that cannot be drawn are not there, for neither path."""
    decoder = speculative(wb.FixedTree((4, 2)))
    settings = {"temperature": 1.0, "top_k": 2, "seed": 3}
    want, _ = steps(pair, decoder, monkeypatch, "host", **settings)
    got, _ = steps(pair, decoder, monkeypatch, "device", **settings)
    same_steps(got, want)
    assert {step.drafted for step in got[1:]} == {2 + 4}


def test_models_with_differently_padded_vocabularies(pair, monkeypatch):
    """The draft's rows are cut to the target's vocabulary, or filled up, as on the ordinary path."""
    padded = wrap(llama(0.1, vocabulary=56))
    monkeypatch.setattr("workbench.speculation.drafters.draft_model.companion", lambda *_: padded)
    decoder = wb.Speculative(drafter=wb.DraftModel(), shape=wb.FixedTree((2, 1)))
    for settings in ({}, {"temperature": 1.0}):
        want, _ = steps(pair, decoder, monkeypatch, "host", 8, **settings)
        got, _ = steps(pair, decoder, monkeypatch, "device", 8, **settings)
        same_steps(got, want)
    logits, sampling = torch.randn(2, 5), Sampling()
    for size in (3, 5, 9):
        host = sampling.dist(widened(logits, size), lambda row: [])
        host = known_only(host, 5).raw if size > 5 else host.raw
        device_rows = DeviceSampling(sampling, 0, "torch").dists(cut(logits, size)).raw
        torch.testing.assert_close(fit(device_rows, size), host, rtol=1e-6, atol=1e-6)  # sums over rows of two widths


@needs_interpreter
@pytest.mark.parametrize(
    ("decoder", "sampling"), [("plain", "greedy"), ("plain", "top_k"), ("chain", "greedy"), ("tree", "seeded")]
)
def test_the_triton_kernels_give_the_same_steps(decoder, sampling, pair, monkeypatch):
    """Attention over the live slots and the fused sampler, under the interpreter."""
    make, settings = DECODERS[decoder], SAMPLINGS[sampling]
    want, _ = steps(pair, make(), monkeypatch, "host", 3, **settings)
    monkeypatch.setattr(device, "IMPLEMENTATION", "triton")
    got, _ = steps(pair, make(), monkeypatch, "device", 3, **settings)
    same_steps(got, want)
    assert got[-1].forwards["implementation"][-1] == "device+triton"


@needs_interpreter
@pytest.mark.parametrize("sampling", ["greedy", "seeded"])
def test_rejection_on_the_device_gives_the_same_steps(sampling, pair, monkeypatch):
    """Drafts drawn from the draft's distribution, tested in Triton: the same uniforms, fates and tokens as on the
    host."""
    decoder = speculative(wb.FixedTree((2, 1)), verifier=wb.Rejection())
    want, _ = steps(pair, decoder, monkeypatch, "host", 3, **SAMPLINGS[sampling])
    monkeypatch.setattr(device, "IMPLEMENTATION", "triton")
    got, _ = steps(pair, decoder, monkeypatch, "device", 3, **SAMPLINGS[sampling])
    same_steps(got, want)
    assert got[-1].forwards["implementation"][-1] == "device+triton"


# -- time travel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", DECODERS)
def test_going_back_forking_and_replaying(decoder, pair):
    """A fork from the middle continues as the original did; another token, and another seed, leave it untouched."""
    session = wb.Session(pair, PROMPT, DECODERS[decoder](), max_new_tokens=30, temperature=1.0, seed=2)
    session.run()
    whole = session.trace.token_ids
    for at in (0, 7, 20):
        again = session.fork(at)
        again.run()
        assert again.trace.token_ids == whole
    other = session.fork(9, token=(whole[9] + 1) % 48)
    other.run()
    assert other.trace.token_ids[:9] == whole[:9] and other.trace.token_ids[9] == (whole[9] + 1) % 48
    assert set(other.trace.forwards["implementation"]) == {"sdpa", "device+sdpa"}  # forced rounds, then free ones
    plain = wb.decode(pair, [*PROMPT, *other.trace.token_ids[:10]], max_new_tokens=5)
    greedy = other.fork(10, temperature=0.0)
    greedy.run(rounds=5)
    assert greedy.trace.token_ids[10:15] == plain.token_ids
    session.back(3)
    assert [event["round"] for event in session.replay()] == list(range(session.rounds))
    assert session.trace.token_ids == whole


def test_two_branches_take_turns_in_one_memory(pair):
    """Branches share a run until both write; then each has rounds of its own."""
    first = wb.Session(pair, PROMPT, max_new_tokens=20)
    first.run(rounds=4)
    second = first.fork(4, temperature=1.0, seed=9)
    for _ in range(5):
        first.step()
        second.step()
    runs = [session.state.runners["target"].store._run for session in (first, second)]
    assert runs[0] is not runs[1] and all(len(device._rounds[run]) == 1 for run in runs)
    assert first.trace.token_ids == wb.decode(pair, PROMPT, max_new_tokens=9).token_ids
    alone = wb.Session(pair, PROMPT, max_new_tokens=20).fork(0)
    alone.run(rounds=4)
    alone = alone.fork(4, temperature=1.0, seed=9)
    alone.run(rounds=5)
    assert second.trace.token_ids == alone.trace.token_ids


def test_a_round_goes_with_the_memory_it_writes_to(pair):
    """A captured graph holds addresses: it must not outlive them, nor keep them."""
    session = wb.Session(pair, PROMPT, DECODERS["chain"](), max_new_tokens=8)
    session.run()
    run = weakref.ref(session.state.runners["target"].store._run)
    (found,) = map(weakref.ref, device._rounds[run()].values())
    del session
    gc.collect()
    assert run() is None and found() is None


def test_only_what_the_device_put_in_place_can_be_committed():
    """A host that decides otherwise than the device is told so; discard and fork are those of the plain store."""
    plain = PlainStore(1)
    plain.begin(range(3))
    plain.stage(0, torch.ones(1, 3, 2), torch.ones(1, 3, 2))
    plain.end()
    plain.commit(range(3))
    store = StaticStore.of(plain)
    for rows, says in (([0, 1], None), ([0, 2], r"put rows \[0, 1\] in place, and \[0, 2\]")):
        store.open(store.length + 4)
        store.commit_written(store.length, 4, [0, 1])
        with pytest.raises(RuntimeError, match="still staged"):
            store.fork()
        if says is None:
            store.commit(rows)
            continue
        with pytest.raises(RuntimeError, match=says):
            store.commit(rows)
        store.discard()
    assert (store.length, store.staged, store.fork().length) == (5, 0, 5)
    assert plain.length == 3 and StaticStore.refuses(PlainStore(1)) == "nothing is cached yet"


def test_a_full_run_grows_and_the_rounds_move_over(monkeypatch):
    """Beyond the capacity the keys move to twice the slots, and the text goes on as before."""
    lm = wrap(llama(context=400))
    monkeypatch.setattr("workbench.device.store._SMALLEST", 16)
    monkeypatch.setattr(device, "_AHEAD", 0)
    want, _ = steps(lm, wb.Autoregressive(), monkeypatch, "host", 40)
    got, state = steps(lm, wb.Autoregressive(), monkeypatch, "device", 40)
    same_steps(got, want)
    assert state.runners["target"].store._run.capacity == 64


# -- choice ------------------------------------------------------------------------------------------------------------


def no_zero(ids, scores):
    return scores.index_fill(-1, torch.tensor([0]), -torch.inf)


REFUSED = {
    "processors": ({"processors": (no_zero,)}, None, "Python processors"),
    "level": ({"level": "full"}, None, "whole rows"),
    "cache": ({"cache": wb.StreamingLLM(sinks=4, window=36)}, None, "cache stacks"),
    "copyspec": ({}, lambda: wb.Speculative(drafter=wb.CopySpec(ngram=1)), "drafter copyspec runs on the host"),
    "confidence": ({}, lambda: speculative(wb.ConfidenceStop()), "shape confidence decides"),
    "rejection": (
        {},
        lambda: speculative(wb.FixedLength(2), verifier=wb.Rejection()),
        "rejection on the device takes Triton",
    ),
    "mirostat": ({"temperature": 1.0}, lambda: wb.Mirostat(), "mirostat decides"),
    "children": ({}, lambda: speculative(wb.FixedTree((16,))), None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stays_on_the_host_says_why(name, pair):
    """The run's own event names the place and the reason; every forward names what computed it."""
    settings, make, says = REFUSED[name]
    session = wb.Session(pair, PROMPT, make() if make else None, max_new_tokens=6, **settings)
    session.run()
    told = session.trace.run["body"]
    assert told["name"] == (pair.body[0] if says else "fast") and (says or "asked for") in told["reason"]
    assert ("device+sdpa" in set(session.trace.forwards["implementation"])) == (says is None)


def test_other_reasons(pair, toy, monkeypatch):
    def choice(lm, **options):
        return tuple(wb.Session(lm, [1, 2], **options).trace.run["body"].values())

    name, slower = pair.body
    assert choice(toy) == ("stock", "ToyModel runs on the host")
    monkeypatch.setenv(device.VARIABLE, "auto")
    assert choice(pair) == (name, f"the model is on 'cpu'; {slower}")
    monkeypatch.setenv(device.VARIABLE, "host")
    assert choice(pair) == (name, f"asked for; {slower}")
    monkeypatch.setenv(device.VARIABLE, "gpu")
    with pytest.raises(BadInput, match="expected auto, device or host, got 'gpu'"):
        choice(pair)


def test_rounds_that_cannot_run_on_the_device_alone_run_on_the_host(pair, monkeypatch):
    """Forced tokens, a prompt of one token, and a tree that would outgrow the context; the text is the same."""
    decoder = DECODERS["tree"]()
    for prompt, settings in (([5], {}), (PROMPT, {"force": {6: 3}}), (PROMPT * 15, {})):
        want, _ = steps(pair, decoder, monkeypatch, "host", 12, prompt, **settings)
        got, _ = steps(pair, decoder, monkeypatch, "device", 12, prompt, **settings)
        same_steps(got, want)
        used = [step.forwards["implementation"][-1] for step in got]
        assert {"sdpa", "device+sdpa"} == set(used[1:] if len(prompt) > 1 else used)


def test_broken_logits_end_the_run_with_its_trace(monkeypatch):
    """NaN is named, as on the ordinary path, and the cache is left between rounds."""
    lm = wrap(llama())
    session = wb.Session(lm, PROMPT, max_new_tokens=8)
    session.run(rounds=2)
    with torch.no_grad():
        lm.model.lm_head.weight[3] = torch.nan
    with pytest.raises(NumericalError, match="NaN or infinite"):
        session.step()
    assert session.length == 2 and session.state.fork().runners["target"].store.length == len(PROMPT) + 1
