"""How commands end badly: interrupted, out of memory, on a full disk. One line, and nothing lost or shown twice."""

import errno
import signal
import subprocess
import sys

import pytest

from workbench import cli
from workbench.cli import commands, main
from workbench.cli.preparing import preparing
from workbench.trace import Trace, files

RUN = ["run", "def f(x):", "--max-new-tokens", "6", "--quiet", "--out"]


def line_of(capsys) -> str:
    err = capsys.readouterr().err
    assert err.startswith("workbench: ") and err.count("\n") == 1, err
    return err


def test_a_full_disk_is_one_line_and_the_rounds_before_are_kept(tmp_path, capsys, monkeypatch):
    """It was a traceback, with half a line left in the file."""
    written, whole = [], files.os.write

    def write(fd: int, content: bytes) -> int:
        written.append(content)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(fd, content)

    monkeypatch.setattr(files.os, "write", write)
    code = main([*RUN, str(tmp_path / "run.wb")])
    out, err = capsys.readouterr()
    trace = Trace.load(tmp_path / "run.wb")
    assert code == 2 and err.count("\n") == 1 and "No space left on device; make room" in err
    assert len(trace.token_ids) == 2 and not trace.dropped and out == trace.text + "\n"


@pytest.mark.parametrize("place", ["before it is shown", "after"])
def test_ctrl_c_shows_every_recorded_token_once(place, tmp_path, capsys, monkeypatch):
    """What is printed is the text of the trace, wherever the interrupt falls."""
    from workbench.report import terminal

    pieces, stream = [], terminal.stream

    def interrupted(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 3 and place == "before it is shown":
            raise KeyboardInterrupt
        stream(text)
        if len(pieces) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(terminal, "stream", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main([*RUN, str(tmp_path / "run.wb")])
    finally:
        signal.signal(signal.SIGINT, before)
    trace = Trace.load(tmp_path / "run.wb")
    assert code == 130 and capsys.readouterr().out == trace.text + "\n"
    assert len(trace.token_ids) == 3 and trace.end["reason"] == "interrupted"


@pytest.mark.parametrize("does", ["swallows it", "fails of it", "passes it on"])
def test_ctrl_c_during_imports_is_an_interrupt_whatever_a_library_does_of_it(does, capsys, monkeypatch):
    """One library under import swallows it; another is left half made, and fails of something else."""

    def imported(args) -> int:
        with preparing():
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                if does == "fails of it":
                    raise RecursionError("maximum recursion depth exceeded") from None
                if does == "passes it on":
                    raise
        raise AssertionError("the command went on")

    monkeypatch.setitem(commands.COMMANDS, "list", commands.Command("", lambda parser: None, imported))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["list"]) == 130 and line_of(capsys) == "workbench: interrupted\n"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("can't start new thread"),
    ],
)
def test_lack_of_memory_is_one_line_however_a_library_puts_it(error, capsys, monkeypatch):
    """Also where it is the cause of another error, as of an import that failed."""

    def short(args) -> int:
        try:
            raise error
        except type(error) as cause:
            raise ValueError("cannot import it") from cause

    monkeypatch.setitem(commands.COMMANDS, "list", commands.Command("", lambda parser: None, short))
    assert main(["list"]) == 2 and "out of memory" in line_of(capsys)


def test_other_errors_are_not_taken_for_lack_of_memory(capsys, monkeypatch):
    """They are a line that says where, or with the variable set, all of it."""

    def broken(args) -> int:
        raise RuntimeError("something else")

    monkeypatch.setitem(commands.COMMANDS, "list", commands.Command("", lambda parser: None, broken))
    assert main(["list"]) == 2 and "RuntimeError: something else" in line_of(capsys)
    monkeypatch.setenv("WORKBENCH_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="something else"):
        main(["list"])


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_limit_on_memory_that_stops_the_imports_is_one_line():
    """The libraries could not be mapped, which was a traceback of a hundred lines."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 * 10**8, 3 * 10**8))\n"
        "import sys; from workbench.cli import main; sys.exit(main(['run', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "out of memory" in done.stderr, done.stderr


def test_the_entry_point_imports_next_to_nothing():
    """Before `main` runs nobody can turn Ctrl-C into one line."""
    code = "import sys; before = set(sys.modules); import workbench.cli; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.startswith("workbench")}
    own = {"workbench", "workbench.aliases", "workbench.errors", "workbench.members"}
    assert ours == own | {cli.__name__, "workbench.cli.preparing"} and "argparse" not in done.stdout.split()
