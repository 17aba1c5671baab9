"""Several prompts in one forward: each text is that of the lone run, whatever decodes it, whatever holds its cache."""

import copy
import os
from itertools import zip_longest
from unittest import mock

import pytest
import torch
import transformers as tf

import workbench as wb
from tests.cache.conftest import DRAFT, PROMPT, SIZES, TERMS, build, strong
from tests.rounding import MARGIN, Texts, close, margins
from tests.table import DECODERS, commit, covered, length
from workbench.engine.bundle import together
from workbench.engine.model import ForwardRequest
from workbench.models.adapter import wrap

PROMPTS = [PROMPT, PROMPT[:7], PROMPT[5:38]]
CAMPAIGN = bool(os.environ.get("WORKBENCH_CAMPAIGN"))
STACKS = {name: stack for i, (name, stack) in enumerate(covered().items())  # alone, and a third of the pairs
          if "+" not in name or CAMPAIGN or i % 3 == commit() % 3}  # fmt: skip
KNOWN = [name for name, row in DECODERS.items() if row.lossless]
TEXTS = Texts()


def settings(decoder: str) -> dict:
    return {"temperature": DECODERS[decoder].temperature if DECODERS[decoder].sampled else 0.0, "seed": 5,
            "max_new_tokens": 20, "level": "off"}  # fmt: skip


def assert_lone(what: str, small, wide, decoder: str, order=(0, 1, 2), **more) -> None:
    """Every text of the bundle is the lone run's."""
    given, longer = settings(decoder) | more, length(more.get("cache"))

    def alone(lm, number: int) -> list[int]:
        return wb.decode(lm, PROMPTS[number] * longer, DECODERS[decoder].make(DRAFT), **given).token_ids

    def bundled(lm) -> list[list[int]]:
        prompts = [PROMPTS[number] * longer for number in order]
        return [trace.token_ids for trace in wb.decode(lm, prompts, DECODERS[decoder].make(DRAFT), **given)]

    with mock.patch.object(type(small), "forward_many", autospec=True, side_effect=type(small).forward_many) as many:
        texts = bundled(small)
    assert many.call_count > 1, f"{what}: nothing was bundled"
    for place, (number, text) in enumerate(zip(order, texts, strict=True)):
        TEXTS.compared += 1
        expected = alone(small, number)
        if text == expected:
            continue
        at = next(i for i, pair in enumerate(zip_longest(text, expected)) if len(set(pair)) > 1)
        margin = margins(lambda number=number: alone(small, number))[at] if "cache" not in more else 0.0
        line = f"{what}, prompt {number}: token {at} differs, margin {margin:.1e}"
        assert margin < MARGIN and alone(wide, number) == bundled(wide)[place], line
        TEXTS.forgiven.append(line)  # in a stack a near-tie may be one of slots, which float64 tells, too


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_writes_the_text_of_the_lone_run(small, wide, decoder):
    assert_lone(decoder, small, wide, decoder)


@pytest.mark.parametrize("name", STACKS)
def test_under_every_cache_stack(small, wide, name):
    decoder = KNOWN[(commit() + list(STACKS).index(name)) % len(KNOWN)]
    assert_lone(f"{decoder} under {name}", small, wide, decoder, cache=STACKS[name])


def test_the_order_of_prompts_is_nothing(small, wide):
    assert_lone("another order", small, wide, "speculative", order=(2, 0, 1, 0))


def test_windows(sliding):
    wide = wrap(copy.deepcopy(sliding.model).double())
    assert_lone("a sliding window", sliding, wide, "speculative-tree")


def test_few_texts_were_forgiven():
    TEXTS.assert_few()


def test_a_sequence_that_reads_its_neighbour_shows(small, monkeypatch):
    """Negative control: every sequence attends to the first one's keys."""
    from workbench.models import adapter

    assert small.bundles  # tried on the model before anything is wrong
    honest, first = adapter._attend, {}

    def wrong(store, layer, query, *rest):
        return honest(first.setdefault((query.shape[2], store.length), store), layer, query, *rest)

    monkeypatch.setattr(adapter, "_attend", wrong)
    prompts = [PROMPT[:12], PROMPT[12:24]]
    found = [trace.token_ids for trace in wb.decode(small, prompts, max_new_tokens=8)]
    monkeypatch.undo()
    assert found != [wb.decode(small, prompt, max_new_tokens=8).token_ids for prompt in prompts]


@pytest.mark.parametrize("logits_at", ["all", "last", [-1], [0, 2], [1, 1], ()], ids=str)
@pytest.mark.parametrize("want", [(), ("hidden",), ("exit", 1)], ids=str)
def test_every_request_gets_its_own_rows(small, logits_at, want):
    """Logits by any numbers, hidden states, states between layers: what the lone forward gives."""
    texts = [PROMPT[:3], PROMPT[7:12], PROMPT[20:23]]

    def requests():
        return [ForwardRequest(text, range(len(text)), small.new_store(), logits_at=logits_at, want=want)
                for text in texts]  # fmt: skip

    with torch.inference_mode():
        alone = [request.ask(small) for request in requests()]
        bundled = small.forward_many(requests())
    for one, other in zip(alone, bundled, strict=True):
        pairs = [(one.logits, other.logits), (one.hidden, other.hidden), (one.exit, other.exit)]
        pairs += [(x, (other.states or {})[n]) for n, x in (one.states or {}).items()]
        for x, y in pairs:
            assert (x is None) == (y is None)
            assert x is None or (x.shape == y.shape and close(x, y, TERMS))


def test_rows_that_are_not_there_are_nobodys(small):
    texts = [PROMPT[:3], PROMPT[7:12]]
    requests = [ForwardRequest(text, range(len(text)), small.new_store(), logits_at=[3]) for text in texts]
    with pytest.raises(IndexError):
        small.forward_many(requests)


def test_states_in_place_of_tokens(small):
    """Rows of a later layer on, as early exits read them."""
    texts, found = [PROMPT[:3], PROMPT[7:12]], []
    with torch.inference_mode():
        for many in (False, True):
            stores = [small.new_store() for _ in texts]
            outs = [small.forward(text, range(len(text)), store, layers=[0], logits_at=(), want=("exit",))
                    for text, store in zip(texts, stores, strict=True)]  # fmt: skip
            requests = [ForwardRequest(out.exit, range(len(text)), store, layers=[1])
                        for out, text, store in zip(outs, texts, stores, strict=True)]  # fmt: skip
            found.append(small.forward_many(requests) if many else [one.ask(small) for one in requests])
    assert all(close(x.logits, y.logits, TERMS) for x, y in zip(*found, strict=True))


def test_one_forward_serves_all(small, monkeypatch):
    """Counted, and in the table: as many forwards as the longest run has, each of all that still run."""
    calls, honest = [], type(small).forward_many
    monkeypatch.setattr(type(small), "forward_many", lambda self, many: calls.append(len(many)) or honest(self, many))
    traces = wb.decode(small, PROMPTS, max_new_tokens=6)
    assert calls == [3] * 7  # the prompts but their last tokens, then six tokens
    for trace in traces:
        passes = trace.forwards
        assert passes["sequences"].tolist() == [3] * 7 and (passes["wall_ms"] > 0).all()
    spent = [trace.forwards["wall_ms"].tolist() for trace in traces]
    assert spent[0] == spent[1] == spent[2]  # one forward, one time
    assert wb.decode(small, PROMPT, max_new_tokens=2).forwards["sequences"].isna().all()


def test_what_several_prompts_cannot_have(small, tmp_path):
    with pytest.raises(wb.BadInput, match="out is one file; for several prompts or samples leave it out"):
        wb.decode(small, PROMPTS, out=tmp_path / "run.wb")
    with pytest.raises(wb.BadInput, match="prompt 1: .*expected text, token ids or chat messages"):
        wb.decode(small, [PROMPT, None])
    assert [trace.token_ids for trace in wb.decode(small, [PROMPT], max_new_tokens=3)] == [
        wb.decode(small, PROMPT, max_new_tokens=3).token_ids
    ]


def test_an_error_in_one_ends_the_others_where_they_are(small):
    sessions = [wb.Session(small, prompt, max_new_tokens=9) for prompt in PROMPTS]

    def run(session, stop=None):
        while session._compute():
            if session.length == stop:
                raise KeyError("here")
        return session.length

    with pytest.raises(KeyError):
        together([lambda: run(sessions[0]), lambda: run(sessions[1], 4), lambda: run(sessions[2])])
    assert {session.length for session in sessions} == {3, 4} or {s.length for s in sessions} == {4}
    assert [run(session) for session in sessions] == [9, 9, 9]
    for session, prompt in zip(sessions, PROMPTS, strict=True):
        assert session.state.new_tokens == wb.decode(small, prompt, max_new_tokens=9).token_ids


def test_nothing_is_left_behind_by_an_error(small):
    """Neither inference mode nor rows in flight, whether a task raises or a forward that all share."""

    def stop(session):
        raise KeyError("here")

    with pytest.raises(KeyError) as caught:
        wb.decode(small, PROMPTS, max_new_tokens=9, on_round=stop)
    assert not torch.is_inference_mode_enabled()
    assert [trace.end["reason"] for trace in caught.value.traces] == ["interrupted"] * 3
    honest, calls = type(small).forward_many, []

    def full(lm, requests):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError("full")
        return honest(lm, requests)

    with mock.patch.object(type(small), "forward_many", full), pytest.raises(MemoryError) as caught:
        wb.decode(small, PROMPTS, max_new_tokens=9)
    assert not torch.is_inference_mode_enabled() and caught.value.trace.end["reason"] == "error"
    assert sorted(trace.end["reason"] for trace in caught.value.traces) == ["error", "interrupted", "interrupted"]


def test_a_forward_that_fails_is_caught_where_it_was_asked_for(small):
    """A task may handle the error of its forward, and go on; the others do not notice."""
    from workbench.engine.bundle import hub_here

    def task(layers):
        store = small.new_store()
        try:
            return hub_here().ask(small, ForwardRequest([1], [0], store, layers=layers)).logits.shape
        except wb.BadInput:
            return hub_here().ask(small, ForwardRequest([1], [0], store)).logits.shape

    assert set(together([lambda: task(None), lambda: task([7]), lambda: task(None)])) == {(1, small.vocab_size)}


def test_tasks_see_the_callers_context_and_threads_of_theirs_see_no_hub(small):
    import contextvars
    import threading

    name, seen = contextvars.ContextVar("name"), []
    name.set("mine")

    def task():
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: seen.append(context.run(wb.decode, small, PROMPT, max_new_tokens=2)))
        thread.start()
        thread.join()
        return name.get()

    assert together([task, task]) == ["mine", "mine"] and len(seen) == 2


def test_long_prompts_share_forwards_of_bounded_size(small, monkeypatch):
    from workbench.engine import bundle

    monkeypatch.setattr(bundle, "ROWS", 64)
    with mock.patch.object(type(small), "forward_many", autospec=True, side_effect=type(small).forward_many) as many:
        wb.decode(small, [PROMPT] * 3, max_new_tokens=3)
    rows = [sum(len(request.positions) for request in call.args[1]) for call in many.call_args_list]
    assert rows and max(rows) <= 64


def test_processors_with_a_memory_are_refused(small):
    class Counting:
        def __init__(self):
            self.calls = 0

        def __call__(self, ids, scores):
            self.calls += 1
            return scores + self.calls * torch.arange(scores.shape[-1])

    with pytest.raises(wb.BadInput, match="several prompts are decoded side by side with it"):
        wb.decode(small, PROMPTS, processors=[Counting()], max_new_tokens=2)


def test_prompts_in_arrays(small):
    for prompts in (torch.tensor([PROMPT[:5], PROMPT[5:10]]), [torch.tensor([3]), torch.tensor([4])]):
        traces = wb.decode(small, prompts, max_new_tokens=2)
        assert [t.token_ids for t in traces] == [wb.decode(small, p, max_new_tokens=2).token_ids for p in prompts]


def test_ctrl_c_keeps_every_trace(small):
    def stop(session):
        if session.rounds == 3:
            raise KeyboardInterrupt

    traces = wb.decode(small, PROMPTS, max_new_tokens=9, on_round=stop)
    assert {trace.log[-1]["reason"] for trace in traces} == {"interrupted"}
    assert all(0 < len(trace.token_ids) < 9 for trace in traces)


def test_tasks_within_tasks_and_lone_tasks_run_as_they_are(small):
    def inner():
        return [trace.token_ids for trace in wb.decode(small, PROMPTS[:2], max_new_tokens=3)]

    assert together([inner, inner]) == [inner(), inner()] and together([]) == [] and together([lambda: 7]) == [7]


def test_models_whose_angles_follow_the_length_are_not_bundled():
    config = tf.LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    lm = wrap(strong(tf.LlamaForCausalLM(config)))
    assert not lm.bundles and wrap(build()).bundles
    by_layer = copy.deepcopy(lm.model)
    by_layer.model.rotary_emb.rope_type = {"full_attention": "longrope"}
    assert not wrap(by_layer).bundles
    traces = wb.decode(lm, PROMPTS, max_new_tokens=3)
    assert all(trace.forwards["sequences"].isna().all() for trace in traces)
    assert [t.token_ids for t in traces] == [wb.decode(lm, p, max_new_tokens=3).token_ids for p in PROMPTS]


def test_a_refusal_in_one_store_opens_none(small):
    """Nothing stays staged where a request of the bundle is refused."""
    whole, broken = small.new_store(), small.new_store()
    broken.begin([0])
    broken.stage(0, *torch.randn(2, 2, 1, 16))
    broken.end()
    requests = [ForwardRequest([1, 2], range(2), whole), ForwardRequest([3], [0], broken)]
    with pytest.raises(RuntimeError, match="all must have as many"):
        small.forward_many(requests)
    assert whole.staged == 0 and whole.length == 0
    small.forward([1, 2], range(2), whole)


def test_a_batch_of_generate_is_bundled(small, monkeypatch):
    calls, honest = [], type(small).forward_many
    monkeypatch.setattr(type(small), "forward_many", lambda self, many: calls.append(len(many)) or honest(self, many))
    rows = torch.tensor([PROMPT[:12], PROMPT[12:24], PROMPT[24:36]])
    given = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    given["attention_mask"] = torch.ones_like(rows)
    stock = small.model.generate(rows, **given)
    ours = small.model.generate(rows, **given, custom_generate=wb.custom_generate())
    assert torch.equal(ours, stock) and calls == [3] * 6
