"""Two runs side by side: the first difference and its cause."""

import pytest

from workbench import views
from workbench.trace import Recorder, Step


def run(made_up, ids: list[int], margin: float = 0.5, end: str = "length", forced=None, **more):
    recorder = Recorder(made_up.run_event(**more))
    for index, token in enumerate(ids):
        tokens = {"token_id": [token], "source": ["target"], "entropy_raw_nats": [0.5], "margin": [margin]}
        step = Step("plain", tokens=tokens, texts=[f"<{token}>"], emitted=1)
        if index == forced:
            step.decisions = [{"controller": "user", "action": "force", "position": 3 + index}]
        recorder.round(step)
    recorder.end(end)
    return recorder.trace


WARM = {"sampling": {"temperature": 0.7}}
CASES = {
    "other prompt": ({}, {"prompt_ids": [1]}),
    "forced token": ({}, {"forced": 2, "seed": 5}),
    "near tie": ({"margin": 1e-4}, {}),
    "other setting": ({"margin": 1e-4}, WARM),
    "other random draw": (WARM, WARM | {"seed": 5}),
    "unknown": ({}, {}),
}


@pytest.mark.parametrize("cause", CASES)
def test_the_cause_of_the_first_difference(made_up, cause):
    a, b = CASES[cause]
    diff, figure = views.branch_diff(run(made_up, [1, 2, 3, 4], **a), run(made_up, [1, 2, 9, 4], **b))
    assert (diff.index, diff.cause) == (2, cause)
    assert diff.tokens["same"].tolist() == [True, True, False, True]
    (line,), (note,) = figure.layout.shapes, figure.layout.annotations
    assert line.x0 == line.x1 == 1.5 and note.text == f"first difference: {cause}"
    assert f"part at token 2: {cause}" in views.description(figure)


def test_settings_are_named_down_to_single_values(made_up):
    a = run(made_up, [1], decoder={"name": "x", "settings": {"k": 2, "same": 1}})
    diff, _ = views.branch_diff(a, run(made_up, [2], decoder={"name": "x", "settings": {"k": 3, "same": 1}}))
    assert diff.settings == {"decoder.settings.k": (2, 3)}
    assert diff.cause == "other setting" and diff.detail == "Set differently: decoder.settings.k 2 → 3."


def test_a_force_named_in_the_run_event_counts_too(made_up):
    diff, _ = views.branch_diff(run(made_up, [1, 2]), run(made_up, [1, 3], **{"seed": 4}))
    assert diff.cause == "other random draw"
    recorder = Recorder(made_up.run_event(forced={"1": 3}))
    for token in (1, 3):
        recorder.round(Step("plain", tokens={"token_id": [token], "source": ["target"]}, texts=["x"], emitted=1))
    assert views.branch_diff(run(made_up, [1, 2]), recorder.trace)[0].cause == "forced token"


def test_a_shorter_run_ends_and_equal_runs_do_not_part(made_up):
    diff, _ = views.branch_diff(run(made_up, [1, 2, 3]), run(made_up, [1, 2], end="eos"))
    assert (diff.index, diff.cause, diff.detail) == (2, "end of one run", "Run b has only 2 tokens (eos).")
    diff, figure = views.branch_diff(run(made_up, [1, 2]), run(made_up, [1, 2]))
    assert (diff.index, diff.cause) == (None, None) and not figure.layout.shapes
    assert views.description(figure) == "All 2 tokens are the same."


def test_texts_and_entropies_are_aligned_by_index(made_up):
    diff, figure = views.branch_diff(run(made_up, [1, 2, 3]), run(made_up, [1, 9]))
    a, b, strip = figure.data
    assert list(a.x) == list(b.x) == list(strip.x) == [0, 1, 2] and list(b.y) == [0.5, 0.5, None]
    assert [list(row) for row in strip.z] == [[0, 1, 1], [0, 1, None]]
    assert list(strip.text[1]) == ["&lt;1&gt;", "&lt;9&gt;", ""]
