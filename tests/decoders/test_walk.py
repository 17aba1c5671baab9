"""How far a state is handed on: from `Decoder.step` to a model's forward it passes few modules."""

import sys

import pytest

import workbench as wb

MOST = 8  # modules, those of the step and of the model included
DECODERS = {
    "autoregressive": lambda: wb.Autoregressive(),
    "chain": lambda: wb.Speculative(wb.DraftModel("walked-draft"), wb.FixedLength(2)),
    "tree": lambda: wb.Speculative(wb.DraftModel("walked-draft"), wb.FixedTree((2, 1)), wb.Rejection()),
    "model-free": lambda: wb.Speculative(wb.CopySpec(ngram=1)),
    "pearl": lambda: wb.Pearl("walked-draft"),
    "mirostat": lambda: wb.Mirostat(),
    "entropy_adaptive": lambda: wb.EntropyAdaptive("walked-draft"),
}


class Walked(wb.ToyModel):
    """Notes through which modules its forwards are called."""

    def forward(self, *args, **options):
        frame, modules = sys._getframe(1), [__name__]
        while frame.f_code.co_name != "step":
            if frame.f_globals["__name__"].startswith("workbench"):
                modules.append(frame.f_globals["__name__"])
            frame = frame.f_back
        self.walks.append({*modules, frame.f_globals["__name__"]})
        return super().forward(*args, **options)


@pytest.mark.parametrize("name", DECODERS)
def test_a_state_passes_few_modules_on_its_way_to_a_forward(name):
    target, draft = Walked(vocab_size=5), Walked(vocab_size=5, seed=1)
    target.walks = draft.walks = walks = []
    wb.register_model("walked-draft", draft)
    settings = {"temperature": 1.0} if name in ("mirostat", "tree") else {}
    wb.decode(target, [1, 2, 3], DECODERS[name](), max_new_tokens=6, **settings)
    assert walks and max(map(len, walks)) <= MOST, max(walks, key=len)
