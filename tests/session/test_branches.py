"""Branches of branches: every place belongs to the session that decoded it, whatever came after or was changed."""

import threading

import pytest
import torch

import workbench as wb
from tests.table import DECODERS, speculative
from workbench import session as session_module

PROMPT = [0, 1, 2, 3, 1, 2]
SEEDED = [name for name, row in DECODERS.items() if row.sampled == "seeded"]


def session(toy, decoder=None, **options) -> wb.Session:
    return wb.Session(toy, PROMPT, decoder, **({"max_new_tokens": 24, "temperature": 1.0, "seed": 5} | options))


def finished(one: wb.Session) -> list[int]:
    one.run()
    return one.trace.token_ids


@pytest.mark.parametrize("at", [1, 4, 9, 10, 14, 20])
@pytest.mark.parametrize("snapshots", [512, 1])
def test_a_branch_with_another_decoder_forks_before_and_after_its_start(toy, at, snapshots, monkeypatch):
    """Before its start the state is the ancestor's, which lacks the runners of the branch's own decoder."""
    monkeypatch.setattr(session_module, "SNAPSHOTS", snapshots)
    root = session(toy)
    text = finished(root)
    branch = root.fork(at=10, decoder=speculative("toy-draft"))
    assert finished(branch) == text  # seeded: the decoder does not matter
    twig = branch.fork(at=at)
    assert twig.trace.run["decoder"]["name"] == "speculative"
    assert finished(twig) == text
    assert finished(twig.fork(at=at, decoder=wb.Speculative(drafter=wb.CopySpec(ngram=1)))) == text


@pytest.mark.parametrize("at", [12, 13, 15, 18, 21])
def test_a_place_after_the_branchs_start_is_the_branchs_own(toy, at, monkeypatch):
    """With next to no snapshots, states are replayed along the branch, not along its parent's other text."""
    monkeypatch.setattr(session_module, "SNAPSHOTS", 1)
    root = session(toy)
    text = finished(root)
    branch = root.fork(at=10, token=(text[10] + 1) % 4)
    own = finished(branch)
    assert own[:10] == text[:10] and own[10:] != text[10:]
    twig = branch.fork(at=at)
    assert finished(twig) == own
    assert finished(twig.fork(at=11)) == own


@pytest.mark.parametrize("name", SEEDED)
def test_a_forced_token_belongs_to_its_own_future(toy, name):
    """Going back before it and choosing otherwise, the token that a later place was given is not forced again."""
    root = session(toy, DECODERS[name].make("toy-draft"))
    text = finished(root)
    branch = root.fork(at=12, token=(text[12] + 1) % 4)
    finished(branch)
    other = (text[5] + 1) % 4
    twig = branch.fork(at=5, token=other)
    expected = finished(root.fork(at=5, token=other))
    assert finished(twig) == expected
    assert finished(branch.fork(at=12, seed=6))[:12] == text[:12]


def test_ids_that_the_user_forces_hold_in_every_branch(toy):
    root = session(toy, force={3: 1, 15: 2})
    finished(root)
    branch = root.fork(at=8, token=0)
    ids = finished(branch)
    assert (ids[3], ids[8], ids[15]) == (1, 0, 2)
    assert finished(branch.fork(at=9, seed=9))[15] == 2
    free = branch.fork(at=8, force=None)
    assert finished(free)[:8] == ids[:8]
    assert free.settings.force.keys() <= set(range(8))


@pytest.mark.parametrize("name", DECODERS)
def test_forking_and_forking_again_leaves_every_ancestor_as_it_was(toy, name):
    """Three generations, each advanced after its child was made, under every decoder of the table."""
    row = DECODERS[name]
    options = {"temperature": row.temperature if row.sampled else 0.0}
    root = session(toy, row.make("toy-draft"), **options)
    root.run(rounds=6)
    child = root.fork(at=max(root.length - 1, 0), token=1)
    child.run(rounds=2)
    grandchild = child.fork(at=max(child.length - 1, 0), token=2)
    logs = [list(one.trace.log) for one in (root, child)]
    finished(grandchild)
    assert [list(one.trace.log) for one in (root, child)] == logs
    text = finished(root)
    alone = finished(session(toy, row.make("toy-draft"), **options))
    assert text == alone
    again = root.fork(at=child.trace.run["parent"]["index"], token=1)
    assert finished(again) == finished(child)


@pytest.mark.parametrize("name", ["autoregressive", "speculative", "speculative-tree", "speculative-copyspec"])
def test_a_branch_on_a_round_start_has_the_very_same_logits(lm, held_out, name, monkeypatch):
    """Not only tokens: every forward of the branch gives bit for bit what its parent's gave."""
    seen: list[torch.Tensor] = []
    forward = type(lm).forward

    def watched(self, *arguments, **options):
        out = forward(self, *arguments, **options)
        seen.append(out.logits.clone())
        return out

    monkeypatch.setattr(type(lm), "forward", watched)
    decoder = DECODERS[name].make("embedded-draft")
    root = wb.Session(lm, held_out[2][-500:], decoder, temperature=0.8, max_new_tokens=20)
    root.run(rounds=3)
    at, mark = root.length, len(seen)
    root.run()
    own = seen[mark:]
    seen.clear()
    root.fork(at=at).run()
    assert len(own) == len(seen) > 3
    assert all(torch.equal(a, b) for a, b in zip(own, seen, strict=True))


def test_branches_run_in_threads_as_they_do_alone(toy):
    """Four branches of one place, all at its frontier, run at once."""
    root = session(toy, speculative("toy-draft"), max_new_tokens=50)
    root.run(rounds=3)
    alone = [finished(root.fork(seed=seed)) for seed in range(4)]
    together = [root.fork(seed=seed) for seed in range(4)]
    threads = [threading.Thread(target=one.run) for one in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.trace.token_ids for one in together] == alone
    assert len({tuple(ids) for ids in alone}) == 4
