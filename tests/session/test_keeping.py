"""What is acknowledged is kept: short forms of the campaigns on writes, interrupts and kills, and what they rest on."""

import os
import threading

import pytest

import workbench as wb
from tests.campaigns.interrupts import SCOPES, at_points, interrupting
from tests.campaigns.kills import killed
from tests.campaigns.writes import every_byte, every_write, limited
from tests.campaigns.writing import check, reference, session
from workbench.errors import BadInput
from workbench.trace import Trace, files

posix = pytest.mark.skipif(os.name != "posix", reason="forks, or limits the size of files")


@pytest.mark.parametrize("fault", ["full half-way", "memory", "Ctrl-C behind"])
def test_a_write_that_fails_loses_nothing_and_leaves_whole_lines(fault, tmp_path):
    """The round used to be the session's before it was recorded, and half a line stayed in the file."""
    assert every_write("chain, off", tmp_path, fault, stride=6) > 12


def test_a_disk_that_is_full_at_any_byte_of_a_line_leaves_the_lines_before(tmp_path):
    assert every_byte("chain, off", tmp_path, stride=13) > 10


@posix
def test_the_systems_own_limit_is_met_in_every_round(tmp_path):
    """No simulation: the system writes what fits, and then refuses."""
    assert limited("chain, off", tmp_path) > 5


@pytest.mark.parametrize("scope", SCOPES)
def test_ctrl_c_at_any_instruction_leaves_a_session_that_goes_on(scope, tmp_path):
    """Nothing is lost or recorded twice, wherever between two instructions the interrupt falls."""
    assert at_points("plain", scope, 3, tmp_path) == 3


def test_ctrl_c_at_every_instruction_of_the_commit(tmp_path):
    """From the write of a round to the move of the cursor, instruction by instruction, where a round could be lost."""
    one = session("plain", out=tmp_path / "run.wb")
    one.run(rounds=2)

    def inside(file: str) -> bool:
        return file.endswith(("session.py", "recorder.py", "index.py"))

    with interrupting(inside, -1) as count:
        one.run(rounds=1)
    assert count[0] > 500
    told = one.length
    for at in range(count[0] - 260, count[0] + 1, 13):
        try:
            with interrupting(inside, at):
                one.run(rounds=1)
        except KeyboardInterrupt:
            pass
        assert told <= one.length <= told + 1
        told = one.length
        assert one.trace.token_ids == reference("plain")[:told]
    one.run()
    check(one, tmp_path / "run.wb", reference("plain"))


@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_round_that_reached_the_file_alone_is_not_there_twice(at, tmp_path, monkeypatch):
    """Interrupted between the file and the log, the session does the round again, and the file has it once."""
    one, put, seen = session("plain", out=tmp_path / "run.wb"), files.RunFile.put, []

    def interrupted(file, *values, **named) -> None:
        put(file, *values, **named)
        seen.append(one.length)
        if len(seen) == at + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(files.RunFile, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.run()
    assert one.length == seen[-1] and len(Trace.load(tmp_path / "run.wb").rounds) == one.rounds + 1
    one.end("interrupted")
    one.run()
    check(one, tmp_path / "run.wb", reference("plain"))


@posix
@pytest.mark.parametrize("over", [False, True])
def test_a_killed_run_has_all_that_it_told_of(over, tmp_path):
    """SIGKILL; where it overwrites, the old file stays until there is a round, and the lock goes with the process."""
    path = tmp_path / "run.wb"
    wb.decode(wb.ToyModel(), [0, 1], max_new_tokens=2, out=path)
    for after in (0, 3, 17):
        found = killed("chain, off", path, after, 0.0, path.read_bytes() if over else None)
        assert not any(found.get(name) for name in ("lost", "wrong", "unreadable", "cut lines")), found


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_writer_is_refused_until_the_first_has_ended(overwrite, tmp_path):
    """Two writers used to mix one file; both said that all was well."""
    path = tmp_path / "run.wb"
    first = session("plain", out=path)
    first.run(rounds=3)
    with pytest.raises(BadInput, match="being written by another run" if overwrite else "exists already") as caught:
        session("plain", out=path, overwrite=overwrite)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="being written by another run"):
        first.trace.save(path)
    first.run()
    check(first, path, reference("plain"))
    again = session("mirostat", out=path, overwrite=True)
    again.run()
    check(again, path, reference("mirostat"))


def test_a_run_that_goes_on_after_its_end_locks_its_file_again(tmp_path):
    one = session("plain", out=tmp_path / "run.wb")
    one.run(rounds=2)
    one.end()
    one.run(rounds=1)
    with pytest.raises(BadInput, match="being written by another run"):
        session("plain", out=tmp_path / "run.wb", overwrite=True)
    one.run()
    check(one, tmp_path / "run.wb", reference("plain"))


def test_an_old_file_stays_until_there_is_a_round(tmp_path, monkeypatch):
    """A run that failed at once used to leave nothing of the file that it was to replace."""
    path = tmp_path / "run.wb"
    wb.decode(wb.ToyModel(), [0, 1], max_new_tokens=4, out=path)
    before = path.read_bytes()
    path.chmod(0o640)
    one = session("plain", out=path, overwrite=True)
    one.end("interrupted")
    assert path.read_bytes() == before
    with monkeypatch.context() as patch, pytest.raises(BadInput, match="No space left"):
        patch.setattr(files.os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        one.run()
    assert path.read_bytes() == before and [found.name for found in tmp_path.iterdir()] == ["run.wb"]
    one.run()
    check(one, path, reference("plain"))
    assert path.stat().st_mode & 0o777 == 0o640


def test_an_error_in_a_round_keeps_its_own_name_where_the_disk_is_full_too(tmp_path, monkeypatch):
    one = session("plain", out=tmp_path / "run.wb")
    one.run(rounds=2)
    monkeypatch.setattr(files.os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    monkeypatch.setattr(one.lm, "forward", lambda *_, **__: (_ for _ in ()).throw(wb.NumericalError("NaN")))
    with pytest.raises(wb.NumericalError) as caught:
        one.run()
    assert caught.value.trace is one.trace and Trace.load(tmp_path / "run.wb").log == one.trace.log


def test_decode_says_in_one_line_that_the_disk_is_full_and_hands_over_the_trace(toy, tmp_path, monkeypatch):
    def fill(one: wb.Session) -> None:
        if one.length == 3:
            monkeypatch.setattr(files.os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))

    with pytest.raises(BadInput, match="cannot write .*run.wb: No space left; make room and go on") as caught:
        wb.decode(toy, [0, 1], max_new_tokens=20, out=tmp_path / "run.wb", on_round=fill)
    assert len(caught.value.trace.token_ids) == 3 and "\n" not in str(caught.value)
    assert Trace.load(tmp_path / "run.wb").token_ids == caught.value.trace.token_ids


def test_threads_may_ask_while_one_decodes(tmp_path):
    """What is known of the rounds is noted by whoever asks first; noting it twice must not count it twice."""
    one, found, over = session("chain, off", 60), [], threading.Event()

    def watch() -> None:
        while not over.wait(0.0005):
            rounds = one.rounds
            found.append(one.round_at(one.length) >= rounds and len(one.text) <= one.length)

    threads = [threading.Thread(target=watch) for _ in range(3)]
    for thread in threads:
        thread.start()
    one.run()
    over.set()
    for thread in threads:
        thread.join()
    assert one.length == 60 == len(one.trace.token_ids) and all(found)
    assert one.trace.end["totals"]["tokens"] == 60
