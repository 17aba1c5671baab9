"""The tier below a CPU's memory: a scratch file, mapped, that no name leads to.

Nothing is left behind however the process ends. What is not being read leaves the process's memory; the system may keep
some of it as long as nobody else needs the room.
"""

import ctypes
import os
import sys
import tempfile

import torch

_DONTNEED = 4  # of madvise, on Linux


def mapped(size: int) -> torch.Tensor | None:
    """`size` bytes of 0 in such a file, uint8 [size]. None where there is none: elsewhere than on Linux, or where the
    folder for temporary files lies in memory itself, or is full."""
    if not sys.platform.startswith("linux") or not size:
        return None
    try:
        with tempfile.TemporaryFile() as file:
            if _in_memory(file.fileno()):
                return None
            os.posix_fallocate(file.fileno(), 0, size)  # what is mapped and not there would end the process
            return torch.from_file(f"/proc/self/fd/{file.fileno()}", shared=True, size=size, dtype=torch.uint8)
    except (OSError, RuntimeError):
        return None


def release(data: torch.Tensor) -> None:
    """Let what `mapped` gave leave memory until it is read again."""
    ctypes.CDLL(None).madvise(ctypes.c_void_p(data.data_ptr()), ctypes.c_size_t(data.nbytes), _DONTNEED)


def _in_memory(number: int) -> bool:
    """Whether an open file lies in memory."""
    place = os.fstat(number).st_dev
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        kinds = [line.split(" - ")[1].split()[0] for line in mounts
                 if line.split()[2] == f"{os.major(place)}:{os.minor(place)}"]  # fmt: skip
    return any(kind in ("tmpfs", "ramfs") for kind in kinds)
