"""Declared values, forms and plug-ins: what is taken, what is refused, and what a broken plug-in may not do."""

import sys
import warnings
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import workbench as wb
from workbench import declare
from workbench.declare import Declared, build, from_dict, setting, to_dict
from workbench.errors import BadInput
from workbench.report import catalogue as catalog
from workbench.report import doctor as diagnosis


class Broken:
    """An object whose every form fails."""

    def __repr__(self):
        raise RuntimeError("no repr")


ODD = [
    10**400, 10**5000, float("inf"), float("-inf"), float("nan"), 1j, Fraction(1, 3), b"4", [], {}, {4}, None, Broken(),
    object, True, "x", "\ud800", np.ones(2), np.ones((2, 2)), torch.ones(2), range(10**12), [[1]], ["1"], 2**70,
]  # fmt: skip


def members():
    return [declare.get(family, name) for family in declare.FAMILIES for name in declare.names(family)]


@pytest.mark.parametrize("cls", members(), ids=lambda cls: f"{cls.family}.{cls.declared_name}")
def test_odd_values_of_every_declared_field_are_taken_or_refused_in_one_line(cls):
    """Never another exception; what is taken is of the field's own type."""
    for entry in declare.describe(cls):
        for value in ODD:
            try:
                member = cls(**{entry.name: value})
            except BadInput as error:
                assert "\n" not in str(error) and len(str(error)) < 1500
                continue
            except Exception as error:
                raise AssertionError(f"{entry.name}={type(value).__name__}: {error!r}") from error
            found, kinds = getattr(member, entry.name), {"int": int, "float": float, "bool": bool, "str": str}
            assert found is None or type(found) is kinds.get(entry.kind, type(found)), entry.name


@dataclass(frozen=True)
class Sample(Declared):
    count: int = setting(3, ge=1)
    share: float = setting(0.5, ge=0, le=1)
    width: int = setting(2, choices=(2, 4))
    parts: tuple[int, ...] | None = setting((1,), ge=0)


def test_harmless_values_become_the_fields_own_type():
    made = Sample(count=np.int32(4), share=np.float32(0.25), width=np.int64(4), parts=np.array([1, 2]))
    assert (made.count, made.share, made.width, made.parts) == (4, 0.25, 4, (1, 2))
    assert type(made.count) is type(made.width) is int and type(made.share) is float
    assert Sample(count=4.0, parts=[2.0, 3], share=torch.tensor(1)) == Sample(count=4, parts=(2, 3), share=1.0)
    for wrong in (dict(width=True), dict(width=4.5), dict(parts={1: 2}), dict(parts="12"), dict(parts=[None])):
        with pytest.raises(BadInput):
            Sample(**wrong)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({5: 1}, "no parameter 5"),
        ({None: 1}, "no parameter None"),
        ({"shape.": 1}, "no parameter 'shape.'"),
        ({"shape.length.x": 1}, "no parameter 'length.x'"),
        ({"shape": 5, "shape.length": 4}, "expected a shape"),
        ({"shape": wb.FixedLength, "shape.length": 4}, "expected a shape"),
        ({"drafter": wb.SeededMatch()}, "expected a drafter"),
        ([("shape", 1)], "parameters by name"),
    ],
    ids=str,
)
def test_parameters_that_cannot_be_are_refused(values, reason):
    with pytest.raises(BadInput, match=reason):
        build("decoder", "speculative", values)


def test_names_that_are_none_are_refused():
    for family, name in (("decoder", 5), ("decoder", None), ("decoder", ["speculative"]), ("nothing", "x"), ([], "x")):
        with pytest.raises(BadInput):
            build(family, name)


def test_damaged_forms_are_refused():
    form = to_dict(wb.Speculative())
    assert from_dict(form) == wb.Speculative()
    deep = {"family": "shape", "name": "fixed", "settings": {}}
    for _ in range(200):
        deep = {"family": "decoder", "name": "speculative", "settings": {"shape": deep}}
    for damaged in (
        None, 5, [], {}, {"family": "decoder"}, {**form, "settings": None}, {**form, "settings": {"lenght": 4}},
        {**form, "family": "nothing"}, {**form, "family": []}, {**form, "name": {}}, {**form, "settings": {5: 4}}, deep,
    ):  # fmt: skip
        with pytest.raises(BadInput) as caught:
            from_dict(damaged)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


# -- plug-ins -----------------------------------------------------------------------------------------------------

FINE = """
from dataclasses import dataclass
from workbench.speculation import FixedLength
from workbench.declare import register, names
names("shape")  # a plug-in may ask while it is loaded
@dataclass(frozen=True)
class Other(FixedLength):
    '''A shape of another package.'''
"""
HALF = FINE + "\nregister('shape', 'half')(Other)\nraise OSError('the disk\\nis away')\n"


@pytest.fixture
def plug_ins(tmp_path, monkeypatch):
    """Six packages that offer a shape; four of them cannot be loaded, the first and the last are fine."""
    (tmp_path / "plug_fine.py").write_text(FINE)
    (tmp_path / "plug_half.py").write_text(HALF)
    (tmp_path / "plug_exits.py").write_text("raise SystemExit(3)")
    info = tmp_path / "plug_ins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-ins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[decoding_workbench]\nshape.a_first = plug_fine:Other\nshape.half = plug_half:Other\n"
        "shape.exits = plug_exits:Other\nshape.none = plug_fine:Nothing\nshape.number = plug_fine:names\n"
        "shapes.family = plug_fine:Other\nshape.z_last = plug_fine:Other\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(declare.registry.KNOWN["shape"])
    monkeypatch.setattr(declare.plugins, "_loaded", False)
    monkeypatch.setattr(declare.plugins, "_broken", {})
    yield
    declare.registry.KNOWN["shape"].clear()
    declare.registry.KNOWN["shape"].update(before)
    for name in ("plug_fine", "plug_half", "plug_exits"):
        sys.modules.pop(name, None)


def test_a_broken_plug_in_names_itself_and_hides_nothing_else(plug_ins, capsys):
    with pytest.warns(UserWarning) as told:
        known = declare.names("shape")
    assert {"a_first", "z_last", "fixed"} <= set(known) and not {"half", "exits", "none", "number"} & set(known)
    lines = [str(warning.message) for warning in told]
    assert len(lines) == 5 and not any("\n" in line for line in lines)
    for name in ("shape.half", "shape.exits", "shape.none", "shape.number", "shapes.family"):
        assert sum(f"{name!r} is left out" in line for line in lines) == 1, name
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        assert declare.names("shape") == known and set(declare.broken()) >= {"shape.half", "shape.none"}
    with pytest.raises(BadInput, match="plug-in, and plug_half:Other could not be loaded: OSError: the disk is away"):
        build("shape", "half")
    listed = catalog.listing("shapes")
    assert "half               a plug-in that is left out" in listed and "z_last" in listed
    assert any("shape.half" in line for line in diagnosis.advice([]))
    assert "z_last" in {second for _, second, _ in wb.speculation.refusals()} or build("shape", "z_last").length > 0


def test_a_plug_in_may_be_a_view(monkeypatch, capsys):
    """Any function; what is none is left out. A view is found by name, listed, and no member that a form describes."""
    offers = {"view.mine": lambda trace, theme=None: None, "view.four": 4, "view.odd": lambda trace: None}
    offers["view.odd"].offers = 3
    entries = [
        SimpleNamespace(name=name, value="mine", load=lambda found=found: found) for name, found in offers.items()
    ]
    monkeypatch.setattr(declare.plugins, "_loaded", False)
    monkeypatch.setattr(declare.plugins, "_broken", {})
    monkeypatch.setattr(declare.plugins, "entry_points", lambda group: entries)
    monkeypatch.setitem(declare.registry.KNOWN, "view", dict(declare.registry.KNOWN["view"]))
    with pytest.warns(UserWarning, match="expected a function, got 4"):
        assert declare.get("view", "mine") is offers["view.mine"] and not {"four", "odd"} & {*declare.names("view")}
    assert "four               a plug-in that is left out" in catalog.listing("views")
    assert "mine(trace, theme=None)" in catalog.about("views", "mine")
    for made in (lambda: build("view", "mine"), lambda: from_dict({"family": "view", "name": "mine", "settings": {}})):
        with pytest.raises(BadInput, match="unknown family 'view'; expected one of"):
            made()


def test_plug_ins_are_loaded_where_warnings_are_errors(plug_ins):
    with warnings.catch_warnings(), pytest.raises(UserWarning, match=r"shape\.half"):
        warnings.simplefilter("error")
        declare.names("shape")
    assert {"a_first", "z_last"} <= set(declare.names("shape"))
