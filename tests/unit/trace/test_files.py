"""Files appear whole or not at all, follow links, replace regular files only, and are pressed onto the disk."""

import errno
import os
import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench.errors import BadInput
from workbench.trace import Recorder, Trace, files
from workbench.trace.files import RunFile, write_whole

WRITERS = {
    "save": lambda trace, path: trace.save(path),
    "capsule": lambda trace, path: trace.capsule(path),
    "perfetto": lambda trace, path: trace.to_perfetto(path),
    "out": lambda trace, path: Recorder({"seed": 1}, out=path, overwrite=True),
}
ALL = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture
def trace(made_up):
    return made_up.record([(4, 2)]).trace


def refused(write, trace, path) -> str:
    with pytest.raises(BadInput) as caught:
        write(trace, path)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400
    return line


@ALL
@pytest.mark.parametrize("through", ["itself", "a link"])
def test_what_is_no_regular_file_is_never_replaced(name, through, trace, tmp_path):
    """A pipe hung the writer; as root, a device node was replaced by a file."""
    os.mkfifo(tmp_path / "pipe")
    made = {"pipe": "no regular file", "folder": "a folder"}
    (tmp_path / "folder").mkdir()
    for what, said in made.items():
        path = tmp_path / what
        if through == "a link":
            (tmp_path / f"to-{what}").symlink_to(path)
            path = tmp_path / f"to-{what}"
        mode = path.stat().st_mode
        assert said in refused(WRITERS[name], trace, path) and path.stat().st_mode == mode
    assert "no regular file" in refused(WRITERS[name], trace, os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@ALL
def test_names_that_cannot_be_are_one_line(name, trace, tmp_path):
    """An empty name, a zero byte, a name too long and what is no name at all used to be raw errors."""
    for path in ("", "a\0b", 5, None if name != "out" else 5.0, ["run.wb"]):
        assert "expected the path of" in refused(WRITERS[name], trace, path)
    assert "too long" in refused(WRITERS[name], trace, tmp_path / ("x" * 300))
    assert "Not a directory" in refused(WRITERS[name], trace, Path(__file__) / "run.wb")
    assert "No such file" in refused(WRITERS[name], trace, tmp_path / "none" / "run.wb")
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_the_greatest_length_can_be_written(trace, tmp_path):
    """The name of the file beside it used to be longer still."""
    path = tmp_path / ("x" * 252 + ".wb")
    trace.save(path)
    assert Trace.load(path).log == trace.log and list(tmp_path.iterdir()) == [path]
    Recorder({"seed": 1}, out=tmp_path / ("y" * 255))


@ALL
def test_links_are_followed_and_permissions_kept(name, trace, tmp_path):
    """A link used to become a file, and what it led to kept the old bytes."""
    real, link = tmp_path / "real.wb", tmp_path / "link.wb"
    real.write_bytes(b"old")
    real.chmod(0o604)
    link.symlink_to(real)
    if name == "out":
        recorder = Recorder({"seed": 1}, out=link, overwrite=True)
        recorder._append({"type": "round", "round": 0})
    else:
        WRITERS[name](trace, link)
    assert link.is_symlink() and real.read_bytes() != b"old" and stat.S_IMODE(real.stat().st_mode) == 0o604
    assert sorted(found.name for found in tmp_path.iterdir()) == ["link.wb", "real.wb"]


def test_many_threads_may_save_to_one_place(trace, tmp_path):
    """The name of the file beside it held the process only, so that threads took it from each other."""
    errors = []

    def save() -> None:
        try:
            for _ in range(8):
                trace.save(tmp_path / "run.wb")
        except BadInput as error:
            errors.append(error)

    threads = [threading.Thread(target=save) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and Trace.load(tmp_path / "run.wb").log == trace.log
    assert [found.name for found in tmp_path.iterdir()] == ["run.wb"]


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(failing, trace, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "run.wb"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, failing, fail)
    assert "No space left on device; make room" in refused(WRITERS["save"], trace, path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """What is done to the disk, in order: writes, syncs of files and folders, renames."""
    seen: list[str] = []

    def fsync(fd: int) -> None:
        seen.append("sync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")

    def write(fd: int, content: bytes, whole=os.write) -> int:
        seen.append("write")
        return whole(fd, content)

    def replace(*names, whole=os.replace) -> None:
        seen.append("rename")
        whole(*names)

    for name, instead in (("fsync", fsync), ("write", write), ("replace", replace)):
        monkeypatch.setattr(files.os, name, instead)
    return seen


def test_a_saved_file_is_on_the_disk_before_its_name_is(calls, tmp_path):
    """The promise about a loss of power, for whatever is written whole."""
    write_whole(tmp_path / "run.wb", b"{}\n")
    assert calls == ["write", "sync file", "rename", "sync folder"]


def test_a_run_is_pressed_onto_the_disk_at_its_first_round_every_five_seconds_and_at_its_end(
    calls, tmp_path, monkeypatch
):
    """The promise about a loss of power, for a run: what was recorded by then is there."""
    now = [100.0]
    monkeypatch.setattr(files, "time", SimpleNamespace(monotonic=lambda: now[0]))
    file, size, seen = RunFile(tmp_path / "run.wb"), 0, []
    for wait, last in ((0, False), (0, False), (2, False), (2.9, False), (0.2, False), (1, False), (0, True)):
        now[0] += wait
        file.put(b"line\n", size, last)
        size += 5
        seen.append(" ".join(calls))
        calls.clear()
    pressed = "write sync file sync folder"
    assert seen == ["write", pressed, "write", "write", pressed, "write", pressed]
    assert (tmp_path / "run.wb").read_bytes() == b"line\n" * 7


def test_a_run_that_replaces_a_file_is_on_the_disk_before_it_does(calls, tmp_path):
    (tmp_path / "run.wb").write_bytes(b"old")
    file = RunFile(tmp_path / "run.wb", overwrite=True)
    assert file.waits and calls == []
    file.put(b"line\n", 0)
    assert not file.waits and calls == ["write", "sync file", "rename", "sync folder"]


def test_a_file_system_that_cannot_sync_is_no_error(tmp_path, monkeypatch):
    def fail(fd):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(files.os, "fsync", fail)
    write_whole(tmp_path / "run.wb", b"{}\n")
    assert (tmp_path / "run.wb").read_bytes() == b"{}\n"


def test_a_file_system_without_links_or_locks_still_never_loses_another_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(files.os, "link", fail)
    monkeypatch.setattr(files.fcntl, "flock", fail)
    file = RunFile(tmp_path / "run.wb")
    (tmp_path / "run.wb").write_bytes(b"of another one, meanwhile")
    with pytest.raises(BadInput, match="exists already"):
        file.put(b"line\n", 0)
    assert (tmp_path / "run.wb").read_bytes() == b"of another one, meanwhile"
    RunFile(tmp_path / "other.wb").put(b"line\n", 0)
    assert (tmp_path / "other.wb").read_bytes() == b"line\n"


def test_where_open_files_cannot_be_renamed_they_are_closed_first(tmp_path, monkeypatch):
    """As on Windows: the file is opened and locked again under its name."""
    monkeypatch.setattr(files, "MOVES_OPEN", False)
    (tmp_path / "run.wb").write_bytes(b"old")
    file = RunFile(tmp_path / "run.wb", overwrite=True)
    file.put(b"one\n", 0)
    file.put(b"two\n", 4)
    assert (tmp_path / "run.wb").read_bytes() == b"one\ntwo\n"
    with pytest.raises(BadInput, match="being written by another run"):
        RunFile(tmp_path / "run.wb", overwrite=True)
    write_whole(tmp_path / "other.wb", b"whole\n")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["other.wb", "run.wb"]


def test_what_another_program_cut_off_is_not_filled_with_zeros(tmp_path):
    file = RunFile(tmp_path / "run.wb")
    file.put(b"one\n", 0)
    file.put(b"two\n", 4)
    (tmp_path / "run.wb").write_bytes(b"one\n")
    file.put(b"three\n", 8)
    assert (tmp_path / "run.wb").read_bytes() == b"one\nthree\n"


def test_parquet_tables_are_written_whole_and_an_empty_folder_name_is_refused(trace, tmp_path):
    with pytest.raises(BadInput, match="expected the path of a folder"):
        trace.to_parquet("")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "tokens.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    trace.to_parquet(tmp_path / "tables")
    assert (tmp_path / "elsewhere.parquet").stat().st_size > 100
    assert not list((tmp_path / "tables").glob(".*"))
