"""A text edited in its cache, contexts read apart, a saved cache: what is kept is what it was."""

import math

import pytest
import safetensors.torch
import torch
import transformers as tf

import workbench as wb
from tests.cache.conftest import DRAFT, TERMS, build, feed, sliding, small, wide  # noqa: F401  (fixtures)
from tests.engine.test_bytes import walk
from tests.rounding import close
from tests.table import DRAFTERS
from workbench import session as session_module
from workbench.cache.protocol import Dress, Segment
from workbench.declare import describe, get
from workbench.editing import blocks_of
from workbench.engine.attention import attend, attend_dressed
from workbench.models.adapter import wrap
from workbench.report.headline import badge
from workbench.rounds.costs import ledgers
from workbench.trace.schema import CACHE_KINDS

TEXT = torch.randint(11, (60,), generator=torch.Generator().manual_seed(4)).tolist()
NEW = [*TEXT[:20], 5, 5, 9, *TEXT[24:]]  # four tokens for three: what follows moves by one
SEEDED = {"temperature": 1.0, "seed": 5, "max_new_tokens": 16}


def decoded(lm, ids=TEXT, decoder=None, **options) -> wb.Session:
    session = wb.Session(lm, ids, decoder, **{**SEEDED, **options})
    session.step()
    return session


def edited(lm, ids=TEXT, to=NEW, decoder=None, **options) -> wb.Session:
    session = decoded(lm, ids, decoder, **options)
    session.jump(0)
    return session.edit(to)


def finished(session: wb.Session) -> list[int]:
    session.run()
    return session.trace.token_ids


def cached(session: wb.Session, layer: int = 0, role: str = "target") -> tuple[torch.Tensor, torch.Tensor]:
    store = session.state.runners[role].store
    return store._run.k[layer][:, : store.held], store._run.v[layer][:, : store.held]


def test_blocks_are_what_two_texts_share():
    assert blocks_of([1, 2, 3], [1, 2, 3]) == [(0, 2, 0)]  # the last token is always read
    assert blocks_of(list(range(40)), [*range(10), 99, *range(12, 40)]) == [(0, 10, 0), (12, 39, 11)]
    assert blocks_of(list(range(40)), [99, *range(40)]) == [(0, 39, 1)]
    assert blocks_of(list(range(40)), [*range(10), 99, 12, 13, 98, *range(20, 40)]) == [(0, 10, 0), (20, 39, 14)]
    assert blocks_of([1, 2, 3], [9, 8]) == []


def test_the_first_layer_is_that_of_a_text_read_anew_and_others_are_not(wide):  # noqa: F811
    """A key or value of the first layer depends on its token and its place alone."""
    one, anew = edited(wide), decoded(wide, NEW)
    one.step()
    for found, wanted, within in zip(cached(one), cached(anew), (1e-5, 1e-12), strict=True):  # angles are float32
        assert found.shape == wanted.shape and (found - wanted).abs().max() < within * wanted.abs().max()
    assert (cached(one, 1)[1] - cached(anew, 1)[1])[:, 24:].abs().max() > 1e-3
    assert torch.equal(cached(one, 1)[1][:, 23:-1], cached(decoded(wide), 1)[1][:, 24 : len(TEXT) - 1])


def test_keys_are_turned_by_one_angle(wide):  # noqa: F811
    """Against a product of complex numbers."""
    one, old = edited(wide), decoded(wide)
    one.step()
    turn = torch.polar(torch.ones(8).double(), 10000.0 ** (-torch.arange(8).double() / 8) * -1)  # by one back
    for layer in (0, 1):
        was = cached(old, layer)[0][:, 24 : len(TEXT) - 1]
        wanted = torch.view_as_real(torch.complex(was[..., :8], was[..., 8:]) * turn)
        found = cached(one, layer)[0][:, 23 : len(NEW) - 1]
        assert (torch.stack([found[..., :8], found[..., 8:]], -1) - wanted).abs().max() < 1e-6


def test_there_and_back_changes_no_bit_of_what_was_kept(small):  # noqa: F811
    """After one edit, and after two in a row, whose turns add up from where the keys were computed."""
    first = decoded(small)
    first.jump(0)
    longer = first.edit([*TEXT[:20], 1, 2, 3, 4, 5, *TEXT[20:]])
    longer.step()
    longer.jump(0)
    both = longer.edit([*TEXT[:9], 7, 7, *TEXT[9:20], 1, 2, 3, 4, 5, *TEXT[20:]])
    both.step()
    both.jump(0)
    assert not torch.equal(cached(longer)[0][:, 25:64], cached(first)[0][:, 20:59])
    for one in (longer, both):
        back = one.edit(TEXT)
        back.step()
        for layer in range(small.layers):
            for found, wanted in zip(cached(back, layer), cached(first, layer), strict=True):
                assert torch.equal(found[:, 20:59], wanted[:, 20:59])
                assert torch.equal(found[:, :9], wanted[:, :9])
        assert not back.state.runners["target"].store.turned


def test_only_what_is_new_is_read_and_what_was_kept_is_on_record(small):  # noqa: F811
    one = edited(small, level="full")
    one.step()
    assert one.trace.run["edited"]["kept"] == [[0, 20, 0], [24, 35, 23]]
    assert one.trace.forwards["rows"].tolist() == [3, 1]  # what is new, and the last token
    events = one.trace.events[["op", "positions", "destination", "layer"]].dropna(axis=1, how="all").to_dict("records")
    assert [(event["op"], event["positions"]) for event in events] == [
        ("splice", [[0, 20]]), ("splice", [[23, 35]]), ("rerotate", [[23, 35]])]  # fmt: skip
    text = finished(one)
    anew = one.recomputed(force=dict(enumerate(text)))
    assert finished(anew) == text and anew.trace.forwards["rows"].iloc[0] == len(NEW) - 1
    assert 0 < anew.trace.divergence(one.trace) < 1
    same = decoded(small, level="full").edit([*TEXT, *decoded(small).trace.token_ids])
    again = same.recomputed(force=dict(enumerate(finished(same))))
    assert finished(again) == same.trace.token_ids
    assert again.trace.divergence(same.trace) < 1e-6  # nothing was edited


def test_bytes_are_what_lies_in_storage_and_a_fork_adds_none(small):  # noqa: F811
    one = edited(small)
    for _ in one:
        state = one.state
        found = sum(sum(column.get(kind, [0])) for column in ledgers(state).values() for kind in CACHE_KINDS)
        assert walk(state) == found == walk(state.fork()) == one.trace.last_rows()[-1]["cache_bytes"]
    notes = ledgers(one.state)["target"]["note"]
    assert notes == [35 * 2 * 16 * 4] * small.layers  # of the turned keys, where they came from


UNTRAINED = [name for name in DRAFTERS if "weights" not in {one.name for one in describe(get("drafter", name))}]


@pytest.mark.parametrize("name", UNTRAINED)
def test_drafts_over_an_edited_text_are_plain_decoding_over_it(wide, name):  # noqa: F811
    """The draft's own cache is edited, too; a drafter that watches the prompt being read is refused."""
    decoder = wb.Speculative(drafter=DRAFTERS[name](DRAFT, ""))
    if decoder.observer() is not None:
        with pytest.raises(wb.BadInput, match="watches the target read its prompt"):
            edited(wide, decoder=decoder)
        return
    one = edited(wide, decoder=decoder)
    assert finished(one) == finished(edited(wide)) != finished(decoded(wide, NEW))
    if "draft" in one.state.runners:
        assert one.trace.forwards.query("phase == 'prefill' and model == 'draft'")["rows"].tolist() == [3]


@pytest.mark.parametrize("snapshots", [512, 1])
def test_branches_and_replay_across_edits(wide, snapshots, monkeypatch):  # noqa: F811
    monkeypatch.setattr(session_module, "SNAPSHOTS", snapshots)
    one = edited(wide)
    text = finished(one)
    for at in (0, 1, 9):
        assert finished(one.fork(at=at)) == text
    other = one.fork(at=4, token=(text[4] + 1) % 11)
    assert finished(other)[:4] == text[:4] and other.trace.token_ids[4] == (text[4] + 1) % 11
    one.jump(8)
    again = one.edit([*NEW, *text[:3], 4, *text[4:8]])  # in the text that was decoded
    assert again.trace.run["edited"]["kept"][0] == [0, len(NEW) + 3, 0]
    assert finished(again) == finished(again.fork(at=0)) and again.parent is None  # the old caches may go
    loaded = wb.Trace(list(one.trace.log))
    assert loaded.token_ids == text


def test_texts_where_nothing_moves_need_no_turning():
    sizes = dict(vocab_size=11, n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=None, eos_token_id=None)
    learned = wrap(tf.GPT2LMHeadModel(tf.GPT2Config(**sizes)).eval())
    same = [*TEXT[:20], 5, *TEXT[21:]]
    one = edited(learned, to=same)
    assert finished(one) and not one.state.runners["target"].store.turned
    with pytest.raises(wb.Unsupported, match="edit needs keys that turn .* recomputed"):
        edited(learned)


def test_what_cannot_be_edited_is_refused(small):  # noqa: F811
    for options, line in (({"cache": wb.H2O(32)}, "edit: a cache stack evicts or quantizes tokens; expected cache=N"),
                          ({"prompt_rows": True}, "edit: prompt_rows asks")):  # fmt: skip
        with pytest.raises(wb.BadInput, match=line):
            edited(small, **options)
    session = decoded(small)
    with pytest.raises(wb.BadInput, match="got 99 at index 0"):
        session.edit([99])
    apart = session.attach([[1, 2], [3]], [4])
    apart.step()
    with pytest.raises(wb.BadInput, match="edit: contexts are attached"):
        apart.edit(NEW)
    for contexts, then, options, line in (
        ([], [1], {}, "a list of contexts"), ("ab", [1], {}, "a list of contexts"), ([[1]], [], {}, "then is empty"),
        (5, [1], {}, "a list of contexts"), ([None], [1], {}, "expected"), ([[1]], 5, {}, "expected"),
        ([[]], [1], {}, "context is empty"), ([[1]], [1], {"scale": 0}, "scale: expected a number above 0"),
        ([[1]], [1], {"temperature": math.nan}, "temperature: expected"), (["x"], [1], {}, "has no tokenizer"),
    ):  # fmt: skip
        with pytest.raises(wb.BadInput, match=line):
            session.attach(contexts, then, **options)
    with pytest.raises(wb.Unsupported, match="reads one sequence at a time"):
        wb.Session(wb.ToyModel(), [0, 1]).attach([[1]], [2])


# -- contexts read apart ---------------------------------------------------------------------------------------------

FIRST, SECOND, THEN = TEXT[3:17], TEXT[30:41], [4, 8, 1]


def attached(lm, contexts, decoder=None, **options) -> wb.Session:
    session = decoded(lm, TEXT[:12], decoder)
    session.jump(0)
    return session.attach(contexts, THEN, **{"max_new_tokens": 12, **options})


def test_one_context_at_neutral_settings_is_the_text_itself(wide):  # noqa: F811
    plain = decoded(wide, [*TEXT[:12], *FIRST, *THEN], max_new_tokens=12)
    one = attached(wide, [FIRST], temperature=1, scale=1)
    assert finished(one) == finished(plain) and one.prompt_ids == plain.prompt_ids
    assert finished(attached(wide, [FIRST])) != plain.trace.token_ids  # at 0.9 it is another text


def test_contexts_that_see_each_other_not_are_rows_that_see_each_other_not(wide):  # noqa: F811
    """Against one forward over all of them, with a mask, at the positions where they lie."""
    one = attached(wide, [FIRST, SECOND], temperature=1, scale=1)
    one.step()
    prefix, a, b = 12, len(FIRST), len(SECOND)
    ids = [*TEXT[:prefix], *FIRST, *SECOND, *THEN]
    places = [*range(prefix + a), *range(prefix, prefix + b), *range(prefix + a, prefix + a + len(THEN))]
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    seen[prefix + a : prefix + a + b, prefix : prefix + a] = False
    logits = wide.forward(ids, places, wide.new_store(), seen).logits
    ours = one.state.fork()
    _, store = ours.tokens, ours.runners["target"].store
    assert store.length == prefix + a + len(THEN) and store.ledger()["live_slots"] == [len(ids)] * wide.layers
    row = one.trace.tokens.iloc[0]
    assert math.isclose(row["entropy_raw_nats"], torch.special.entr(logits[-1].softmax(-1)).sum().item(), abs_tol=1e-5)
    rows = one.trace.forwards["rows"].tolist()
    assert rows == [a, b, len(THEN) - 1, 1]  # each context once, and nothing of the text before


def test_their_order_changes_nothing(wide):  # noqa: F811
    one, other, alone = (attached(wide, contexts) for contexts in ([FIRST, SECOND], [SECOND, FIRST], [FIRST]))
    assert finished(one) == finished(other) and finished(alone)
    entropies = [each.trace.tokens["entropy_raw_nats"] for each in (one, other, alone)]
    assert (entropies[0] - entropies[1]).abs().max() < 2e-5 < (entropies[0] - entropies[2]).abs().max()


def test_drafts_over_contexts_are_plain_decoding_over_them(wide):  # noqa: F811
    plain = finished(attached(wide, [FIRST, SECOND]))
    for name in ("draft_model", "prompt_lookup", "jacobi"):
        one = attached(wide, [FIRST, SECOND], wb.Speculative(drafter=DRAFTERS[name](DRAFT, "")))
        assert finished(one) == plain and finished(one.fork(at=3)) == plain
    one = attached(wide, [FIRST, SECOND])
    one.step()
    found = sum(sum(column.get(kind, [0])) for column in ledgers(one.state).values() for kind in CACHE_KINDS)
    assert walk(one.state) == found == walk(one.state.fork()) == one.trace.last_rows()[-1]["cache_bytes"]


def test_what_was_read_behind_another_text_is_never_called_exact(wide):  # noqa: F811
    """Nor are branches, further edits and texts with contexts; what stands before an edit is, and what is read anew."""
    one, apart = edited(wide), attached(wide, [FIRST, SECOND])
    one.step()
    apart.step()
    behind = one.edit([*NEW, 3, 4])
    for each in (one, one.fork(at=1, temperature=0.5), behind, apart, apart.fork(at=1, seed=3), apart.recomputed()):
        assert badge(each.trace)["text"] == "≈ exact under its cache"
    for each in (one.edit([*NEW[:15], 1, 2]), one.recomputed(), decoded(wide).edit([*TEXT[:50], 1, 2]),
                 attached(wide, [FIRST], temperature=1, scale=1)):  # fmt: skip
        assert badge(each.trace)["text"] == "= exact"
    assert finished(apart.recomputed()) == finished(apart)
    with pytest.raises(wb.BadInput, match="fork: contexts are attached"):
        apart.fork(at=1, cache=wb.H2O(32))
    with pytest.raises(wb.BadInput, match="save_cache: the cache was read behind another text"):
        one.save_cache("none")
    with pytest.raises(wb.BadInput, match="step once first"):
        edited(wide).edit(TEXT)
    with pytest.raises(wb.BadInput, match="fork: prompt_rows"):
        edited(wide).fork(at=0, prompt_rows=True)


def test_windows_reach_over_contexts_by_position(sliding):  # noqa: F811
    """Also once what follows them is a piece of the trunk of its own."""
    one = attached(sliding, [FIRST, SECOND], temperature=1, scale=1)
    one.step()
    store, ids = one.state.runners["target"].store.fork(), one.state.tokens
    more = [at % 11 for at in range(130)]
    with torch.inference_mode():
        feed(sliding, store, more)
        shared = store.fork()
        shared.share()
        places = list(range(len(ids) - 1 + 130, len(ids) + 1 + 130))
        rows = [sliding.forward([1, 2], places, each).logits for each in (store, shared)]
    assert close(rows[1], rows[0], TERMS) and len(shared.trunk) == len(store.trunk) + 1


def test_a_dressed_segment_is_weighed_as_it_says():
    """Against the two softmaxes written out; undressed, it is attention over both."""
    torch.manual_seed(0)
    q, (k, v), (k2, v2) = torch.randn(1, 4, 3, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 6, 8)
    plain = [Segment(k, v), Segment(k2, v2)]
    assert close(attend_dressed(q, plain, 0.3), attend(q, plain, 0.3), TERMS)
    found = attend_dressed(q, [Segment(k, v, dress=Dress(0.8, 0.72)), plain[1]], 0.3)
    wide_k, wide_v, wide_k2, wide_v2 = (x.repeat_interleave(2, 0).double() for x in (k, v, k2, v2))
    one, two = (q[0].double() @ x.transpose(1, 2) * 0.3 for x in (wide_k, wide_k2))
    ends = torch.stack([0.72 * (one / 0.8).logsumexp(-1), two.logsumexp(-1)], -1).softmax(-1)
    parts = (one / 0.8).softmax(-1) @ wide_v, two.softmax(-1) @ wide_v2
    assert close(found[0], sum(ends[..., i, None] * part for i, part in enumerate(parts)).float(), TERMS)


# -- sinks read from no further than the budget ----------------------------------------------------------------------


def test_capped_sinks_lie_where_the_budget_ends(wide):  # noqa: F811
    """One layer: the last row reads what it would if the sinks had been written right before its window; up to the
    budget, nothing changes."""
    lm = wrap(build(num_hidden_layers=1).double())
    stack = wb.StreamingLLM(sinks=4, window=12, interval=16, positions="capped")
    run = wb.Session(lm, TEXT[:40], cache=stack, max_new_tokens=6)
    run.step()
    state = run.state
    store = state.runners["target"].store
    at, start = store.length, store.length - store.held + 4
    assert at - 16 > 0 and store.held < at
    ids, twin = state.tokens, lm.new_store()
    places = [*range(at - 16, at - 12), *range(start, at)]
    lm.forward([*ids[:4], *ids[start:at]], places, twin)
    twin.commit(range(len(places)))
    wanted = lm.forward([ids[at]], [at], twin).logits
    found = lm.forward([ids[at]], [at], store.fork()).logits
    assert (found - wanted).abs().max() < 1e-6 * wanted.abs().max()
    baked = decoded(lm, TEXT[:40], cache=wb.StreamingLLM(4, 12, 16)).state.runners["target"].store
    assert (lm.forward([ids[at]], [at], baked.fork()).logits - wanted).abs().max() > 1e-3
    roomy = wb.StreamingLLM(4, 92, 16, positions="capped")
    assert finished(decoded(wide, cache=roomy)) == finished(decoded(wide))


# -- a saved cache ---------------------------------------------------------------------------------------------------


def test_a_saved_cache_is_the_cache(small, tmp_path):  # noqa: F811
    """Bit by bit, and nothing that it holds is read again; a prompt that parts from it goes on where it does."""
    first = decoded(small, max_new_tokens=8)
    text = finished(first)
    first.save_cache(tmp_path / "prefix.safetensors")
    again = wb.Session(small, TEXT, cached=tmp_path / "prefix.safetensors", **{**SEEDED, "max_new_tokens": 8})
    assert finished(again) == text and again.trace.forwards["rows"].tolist() == [1] * 8
    again = wb.Session(small, TEXT, cached=tmp_path / "prefix.safetensors", **SEEDED)
    again.step()
    for layer in range(small.layers):
        pairs = zip(cached(again, layer), cached(first, layer), strict=True)
        assert all(torch.equal(x[:, : len(TEXT) - 1], y[:, : len(TEXT) - 1]) for x, y in pairs)
    other = wb.Session(small, NEW, cached=tmp_path / "prefix.safetensors", **SEEDED)
    assert finished(other) == finished(decoded(small, NEW))
    assert other.trace.run["edited"]["kept"] == [[0, 20, 0]] and other.trace.forwards["rows"].iloc[0] == len(NEW) - 21


def test_saved_caches_of_others_are_refused(small, wide, tmp_path):  # noqa: F811
    path = tmp_path / "prefix.safetensors"
    with pytest.raises(wb.BadInput, match="nothing is cached yet"):
        wb.Session(small, TEXT).save_cache(path)
    decoded(small).save_cache(path)
    with pytest.raises(wb.BadInput, match="is another model's: d"):
        wb.Session(wide, TEXT, cached=path)
    with pytest.raises(wb.BadInput, match="holds none of this prompt's tokens"):
        wb.Session(small, [(TEXT[0] + 1) % 11, 2], cached=path)
    with pytest.raises(wb.BadInput, match="cached: a cache stack"):
        wb.Session(small, TEXT, cached=path, cache=wb.H2O(32))
    with pytest.raises(wb.BadInput, match="save_cache: a cache stack"):
        decoded(small, cache=wb.H2O(32)).save_cache(path)
    whole = path.read_bytes()
    parts, narrow = safetensors.torch.load(whole), {}
    with safetensors.safe_open(path, "pt") as file:
        told = file.metadata()
    for name, part in parts.items():
        narrow[name] = part[:1] if name == "k.1" else part
    damaged = safetensors.torch.save({name: part.contiguous() for name, part in narrow.items()}, told)
    deep = safetensors.torch.save(parts, {**told, "model": "[" * 100_000})
    for content, line in ((b"", "cannot be read"), (damaged, "is damaged"),
                          (deep, "cannot be read"), (whole[: len(whole) // 2], "cannot be read"),
                          (whole.replace(b"cache 1", b"cache 9"), "is no saved cache")):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(wb.BadInput, match=line):
            wb.Session(small, TEXT, cached=path)
    with pytest.raises(wb.BadInput, match="cannot be read"):
        wb.Session(small, TEXT, cached=tmp_path / "none")
