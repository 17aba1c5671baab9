"""Files that are whole or not there: written beside their place, then named; and the file of a run, which grows by
whole lines under a lock.

What holds after a loss of power is promised in docs/design.md, section 9.
"""

import errno
import math
import os
import secrets
import stat
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from workbench.errors import BadInput, shown

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None

SYNC_S = 5.0  # seconds of a run after which its next round is pressed onto the disk
MOVES_OPEN = os.name != "nt"  # whether an open file can be renamed and replaced
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EROFS)
_FLAGS = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Write a file, all or nothing, and press it onto the disk; symbolic links are followed, permissions kept.

    Raises BadInput where that cannot be done; what was there before then still is.
    """
    place = target(path)
    with _refused(place):
        old = _held(place, shared=True)
        with _beside(place, content, old) as new:
            _sync(new.fd)
            _rename(new, place, old)


def target(path: str | os.PathLike) -> Path:
    """The place a path leads to. Raises BadInput where it is no path, or where something else than a file is there."""
    place, mode = _found(path, "a file")
    if mode is not None and not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise BadInput(f"cannot write {_shown(place)}: it is {what}; choose the name of a file")
    return place


def made_folder(path: str | os.PathLike) -> Path:
    """The folder a path leads to, made where it is missing. Raises BadInput where that is impossible."""
    place, _ = _found(path, "a folder")
    with _refused(place, "choose a folder you may write to"):
        place.mkdir(parents=True, exist_ok=True)
    return place


def _found(path: str | os.PathLike, what: str) -> tuple[Path, int | None]:
    """Where a path leads to, symbolic links followed, and the mode of what is there."""
    shown = os.fsdecode(path) if isinstance(path, bytes) else path
    with _refused(shown, f"choose {what} you may write to"):
        try:
            if not (name := os.fsdecode(path)):
                raise ValueError("no name")
            place = Path(os.path.realpath(name))
            return place, os.stat(place).st_mode
        except FileNotFoundError:
            return place, None
        except (TypeError, ValueError):
            raise BadInput(f"cannot write to {_shown(path)}: expected the path of {what}") from None


@contextmanager
def _refused(path: str | os.PathLike, hint: str = "choose an existing folder you may write to") -> Iterator[None]:
    """The one line about a file that could not be written."""
    try:
        yield
    except BlockingIOError:
        line = f"{_shown(path)} is being written by another run; end that one, or choose another file"
        raise BadInput(line) from None
    except OSError as error:
        if error.errno in FULL:
            hint = "make room and go on; what was written before is kept"
        raise BadInput(f"cannot write {_shown(path)}: {error.strerror or type(error).__name__}; {hint}") from None


class RunFile:
    """The file of one run: nobody else may write it, and it holds whole lines only.

    Where there is a file already, which `overwrite` allows, it stays as it is until the first lines are put. The lock
    is given up at the end of the run, and ends with the process, however that ends; on file systems without locks
    there is none.

    path: where it is, symbolic links followed. waits: whether another file still lies there, to be overwritten.
    Raises BadInput where there is a file and `overwrite` is not given, another run writes it, or it cannot be written.
    """

    def __init__(self, path: str | os.PathLike, overwrite: bool = False):
        self.path = target(path)
        self._file: _File | None = None
        self._synced = -math.inf
        if self.path.exists() and not overwrite:
            raise _exists(self.path)
        with _refused(self.path):
            self._old = _held(self.path)
            if not os.access(self.path.parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    @property
    def waits(self) -> bool:
        return self._old is not None

    def put(self, lines: bytes, at: int, last: bool = False) -> None:
        """Make `lines` what the file holds from byte `at` on; 0 begins it anew.

        last: the run ends with them. The file is pressed onto the disk, as it is every `SYNC_S` seconds, and unlocked
        until there are further lines all the same.
        All or nothing: raises BadInput where it fails, and then, or after an interrupt, what lies before `at` is kept.
        """
        with _refused(self.path):
            if at == 0:
                self._begin(lines)
            else:
                self._extend(lines, at, last)
            if last:
                self._file.unlock()

    def _begin(self, lines: bytes) -> None:
        """The file appears at once with all its lines, in place of the one that was to be overwritten."""
        mine = next((held for held in (self._file, self._old) if held is not None and held.names(self.path)), None)
        with _beside(self.path, lines, mine) as new:
            new.lock()
            if mine is not None:
                _sync(new.fd)
            self._file = new  # before it has its name: should this be broken off now, the file is known as ours
            (_name if mine is None else _rename)(new, self.path, mine)
            if not MOVES_OPEN:
                self._file = _held(self.path)
            self._old = None

    def _extend(self, lines: bytes, at: int, last: bool) -> None:
        self._file.lock()
        size = os.fstat(self._file.fd).st_size
        start = min(at, size)
        try:
            if size > start:  # what an interrupted call has left
                os.ftruncate(self._file.fd, start)
            self._file.write(lines)
            if last or time.monotonic() - self._synced > SYNC_S:
                _sync(self._file.fd)
                _sync_folder(self.path)
                self._synced = time.monotonic()
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._file.fd, start)
            raise

    def close(self) -> None:
        """Let go of the file and its lock."""
        for held in (self._file, self._old):
            if held is not None:
                held.close()

    def remove(self) -> None:
        """Delete the file, where this run has begun it, and close it."""
        if self._file is not None and self._file.names(self.path):
            self.path.unlink(missing_ok=True)
        self.close()


class _File:
    """An open file that is only added to; it closes with the last reference to it."""

    def __init__(self, name: Path, flags: int = 0):
        self.name = name
        self._locked = False
        self.fd = os.open(name, _FLAGS | flags, 0o666)
        self.close = weakref.finalize(self, os.close, self.fd)

    def write(self, content: bytes) -> None:
        while content:
            content = content[os.write(self.fd, content) :]

    def names(self, path: Path) -> bool:
        """Whether this is the file at that path."""
        try:
            return self.close.alive and os.path.samestat(os.fstat(self.fd), os.stat(path))
        except FileNotFoundError:
            return False

    def lock(self, shared: bool = False) -> None:
        """Keep other writers out for as long as it is open. Raises BlockingIOError where there is one."""
        try:
            if fcntl is not None:
                fcntl.flock(self.fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            elif not shared and not self._locked:
                os.lseek(self.fd, 2**62, os.SEEK_SET)  # a byte that nobody reads
                msvcrt.locking(self.fd, msvcrt.LK_NBLCK, 1)
                self._locked = True
        except (BlockingIOError, PermissionError) as error:
            raise BlockingIOError(error.errno, error.strerror) from None
        except OSError:  # a file system without locks
            pass

    def unlock(self) -> None:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(self.fd, fcntl.LOCK_UN)


@contextmanager
def _beside(place: Path, content: bytes, like: _File | None) -> Iterator[_File]:
    """A new file in the folder of another, with its permissions, under a name of its own until it gets that place."""
    name = place.with_name(f".{secrets.token_hex(8)}.tmp")
    new = _File(name, os.O_CREAT | os.O_EXCL)
    gone = weakref.finalize(new, _unlinked, name)  # also where the process ends meanwhile
    try:
        if like is not None and hasattr(os, "fchmod"):
            os.fchmod(new.fd, stat.S_IMODE(os.fstat(like.fd).st_mode))
        new.write(content)
        yield new
    finally:
        gone()


def _unlinked(name: Path) -> None:
    with suppress(OSError):
        os.unlink(name)


def _held(place: Path, shared: bool = False) -> _File | None:
    """The file that is at a place, locked; None where there is none. Raises BlockingIOError where a run writes it."""
    while True:
        try:
            found = _File(place)
        except FileNotFoundError:
            if not place.parent.is_dir():
                raise
            return None
        found.lock(shared)
        if found.names(place):  # else another one took its place before it was locked
            return found


def _rename(new: _File, place: Path, old: _File | None) -> None:
    """Put a file in the place of another one, for good."""
    if not MOVES_OPEN:
        for held in filter(None, (new, old)):
            held.close()
    os.replace(new.name, place)
    _sync_folder(place)


def _name(new: _File, place: Path, old: None = None) -> None:
    """Give a file its name. Raises BadInput where there is one of that name by now."""
    if not MOVES_OPEN:
        new.close()
    try:
        os.link(new.name, place)
    except FileExistsError:
        raise _exists(place) from None
    except OSError:  # a file system without links
        if os.path.lexists(place):
            raise _exists(place) from None
        _rename(new, place, None)


def _exists(place: Path) -> BadInput:
    return BadInput(f"{_shown(place)} exists already; choose another file, or allow it to be overwritten")


def _sync(fd: int) -> None:
    """Press a file or a folder onto the disk, where its file system knows how to."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def _sync_folder(place: Path) -> None:
    """Press a name onto the disk."""
    if fcntl is None:
        return
    fd = os.open(place.parent, os.O_RDONLY)
    try:
        _sync(fd)
    finally:
        os.close(fd)


def _shown(path: object) -> str:
    """A path in an error: in one line, and not endless."""
    text = str(path)
    if not isinstance(path, (str, Path)) or not text.isprintable() or not text:
        return shown(path)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-80:]}"
