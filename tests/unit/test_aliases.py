"""Names of version 0.1: they work, in Python, on the command line and in files, and warn once with the new name."""

import importlib
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass

import pytest

import workbench as wb
from workbench import aliases, declare
from workbench.cli import main
from workbench.errors import BadInput


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    """No old name was used before."""
    monkeypatch.setattr(aliases, "_told", set())


def once(use):
    """What `use` gives; it must warn the first time, at the line in this file, and not the second."""
    with pytest.warns(aliases.Renamed, match="migrating.md") as told:
        found = use()
    assert len(told) == 1 and told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use()
    return found


@pytest.mark.parametrize("old", aliases.NAMES)
def test_old_names_are_the_new_classes(old):
    rooms = ("workbench", "workbench.decoders", "workbench.speculation", "workbench.speculation.verifiers")
    new = aliases.NAMES[old]
    found = [room for room in map(importlib.import_module, rooms) if hasattr(room, new)]
    assert found
    for room in found:
        aliases._told.clear()
        assert once(lambda room=room: getattr(room, old)) is getattr(room, new)


@pytest.mark.parametrize("room", aliases.HOMES)
def test_names_are_found_in_their_old_rooms(room):
    for name in aliases.HOMES[room]:
        assert once(lambda name=name: getattr(importlib.import_module(room), name)).__name__ == name


@pytest.mark.parametrize("family, old", aliases.MEMBERS)
def test_old_members_are_found(family, old):
    new = declare.get(family, aliases.MEMBERS[family, old])
    assert once(lambda: declare.get(family, old)) is new
    assert old not in declare.names(family)


@pytest.mark.parametrize("family, name", aliases.PARAMETERS)
def test_old_parameters_are_read_everywhere(family, name):
    """By keyword, by the flat values of a command line, in a file's form, and as an attribute."""
    cls = declare.get(family, name)
    for old, new in aliases.PARAMETERS[family, name].items():
        value = getattr(cls(), new)
        form = declare.to_dict(cls())
        form["settings"][old] = form["settings"].pop(new)
        uses = [
            lambda old=old, value=value: cls(**{old: value}),
            lambda old=old, value=value: declare.build(family, name, {old: str(value)}),
            lambda form=form: declare.from_dict(form),
        ]
        for use in uses:
            aliases._told.clear()
            assert once(use) == cls()
        assert once(lambda old=old: getattr(cls(), old)) == value
        with pytest.raises((BadInput, TypeError), match=old):
            cls(**{old: value, new: value})


def test_old_names_on_the_command_line(capsys):
    words = ["run", "def f(x):", "--max-new-tokens", "3", "--quiet", "--decoder", "speculative"]
    with pytest.warns(aliases.Renamed) as told:
        old = ["--set", "verifier=keyed", "--set", "drafter=copyspec", "--set", "drafter.gram=2"]
        assert main([*words, *old]) == 0
    assert {"seeded", "ngram"} == {word for word in ("seeded", "ngram") if any(word in str(w.message) for w in told)}
    text = capsys.readouterr().out
    assert main([*words, "--set", "drafter=copyspec", "--set", "drafter.ngram=2"]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("old", aliases.MODULES)
def test_old_modules_are_the_new_ones(old, monkeypatch):
    with pytest.warns(aliases.Renamed, match=aliases.MODULES[old].replace(".", r"\.")):
        aliases._told.clear()
        monkeypatch.delitem(importlib.sys.modules, old, raising=False)
        found = importlib.import_module(old)
    assert found is importlib.import_module(aliases.MODULES[old])
    assert found.__spec__.name == found.__name__ == aliases.MODULES[old]


def test_modules_within_old_packages_are_not_loaded_twice():
    with pytest.warns(aliases.Renamed):
        from workbench.bits.kivi import KIVI
        from workbench.cache.policies import H2O
    assert KIVI is wb.KIVI and H2O is wb.H2O


def test_a_class_written_for_0_1_is_refused_in_one_line():
    """By its first old name, when it is defined; one of today is not."""
    for base, body in (
        (wb.Decoder, {"round": lambda self, state, log: None}),
        (wb.Decoder, {"claim": lambda self, sampling: "own_law"}),
        (wb.Drafter, {"propose": lambda self, state, log, shape, depth, coupled: None}),
        (wb.Drafter, {"settle": lambda self, state: None}),
        (wb.DraftShape, {"grow": lambda self, growth: None}),
        (wb.Verifier, {"coupled": True}),
    ):
        with pytest.raises(BadInput, match="Mine was written for workbench 0.1") as caught:
            type("Mine", (base,), body)
        assert "docs/migrating.md" in str(caught.value) and "\n" not in str(caught.value)

    @dataclass(frozen=True)
    class Today(wb.Decoder):
        def decode_round(self, state, r):
            log = []
            return log

        def log(self, log):
            return log


def test_a_plug_in_of_0_1_is_left_out_and_says_why(monkeypatch):
    class Entry:
        name, value = "decoder.mine", "mine:Mine"

        def load(self):
            return type("Mine", (wb.Decoder,), {"round": lambda self, state, log: None})

    monkeypatch.setattr(declare.plugins, "_loaded", False)
    monkeypatch.setattr(declare.plugins, "_broken", {})
    monkeypatch.setattr(declare.plugins, "entry_points", lambda group: [Entry()])
    with pytest.warns(UserWarning, match="written for workbench 0.1"):
        assert "mine" not in declare.names("decoder")
    with pytest.raises(BadInput, match="docs/migrating.md"):
        declare.get("decoder", "mine")


def test_commands_of_old_modules_still_run():
    """`python -m` asks the importer of a name for its code."""
    command = [sys.executable, "-m", "workbench.speculation.training", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_sessions_import_without_transformers_and_docstrings():
    """The app serves its page before transformers is there; -OO leaves out what keywords are written into."""
    code = "import sys, workbench.session; sys.exit('transformers' in sys.modules)"
    for flags in ([], ["-OO"]):
        assert subprocess.run([sys.executable, *flags, "-c", code], check=False).returncode == 0, flags


@pytest.mark.parametrize("old", aliases.CLASSES)
def test_old_classes_are_found_where_they_were(old):
    module, _, name = old.rpartition(".")
    place, _, new = aliases.CLASSES[old].rpartition(".")
    aliases._told.discard(old)
    with pytest.warns(aliases.Renamed, match=re.escape(aliases.CLASSES[old])):
        found = getattr(importlib.import_module(module), name)
    assert found is getattr(importlib.import_module(place), new)
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        getattr(importlib.import_module(module), "Other")  # noqa: B009, as any caller would
