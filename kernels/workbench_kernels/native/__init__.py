"""What a C++ compiler of this machine makes of `native.cpp` beside this file: for the CPU, built once into the user's
cache. Importing this needs nothing; `compiled` says what is lacking.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from workbench_kernels.dispatch import VARIABLE

__all__ = ["COMPILERS", "FORCED", "cache_folder", "compiled"]

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-strict-aliasing", "-fno-math-errno",
         "-fno-trapping-math", "-march=native")  # fmt: skip
COMPILERS = ("c++", "g++", "clang++")
FORCED = ("torch", "triton")  # values of WORKBENCH_KERNELS that leave this out

_building = threading.Lock()


def compiled() -> ctypes.CDLL:
    """The compiled source. Raises RuntimeError with the reason where it cannot be had."""
    if (wish := os.environ.get(VARIABLE)) in FORCED:
        raise RuntimeError(f"{VARIABLE}={wish}")
    with _building:
        found = _compiled()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


@functools.cache
def _compiled() -> ctypes.CDLL | str:
    """The compiled source, or why there is none: tried once."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None)
    if compiler is None:
        return "no C++ compiler found"
    reasons = []
    for flags in ((*FLAGS, "-fopenmp"), FLAGS):
        try:
            return _declared(_loaded(compiler, flags))
        except (OSError, subprocess.SubprocessError) as error:
            told = getattr(error, "stderr", None) or str(error)
            reasons += told.strip().splitlines()[:1]
    return f"{compiler}: {'; '.join(dict.fromkeys(reasons))}"


def _loaded(compiler: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    """What this compiler makes of the source for this CPU, from the user's cache or into it; made anew where what lies
    there does not load. A cache that is not the user's own is left alone."""
    facts, made = Path("/proc/cpuinfo"), os.stat(compiler)
    words = ("flags", "Features", "CPU part", "isa")
    cpu = sorted({line for line in facts.read_text().splitlines() if line.startswith(words)}) if facts.is_file() else ()
    key = (SOURCE.read_bytes(), compiler, made.st_size, made.st_mtime, flags, platform.uname()[4:], *cpu)
    with tempfile.TemporaryDirectory() as own:
        folder = _kept() or Path(own)
        place = folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
        if place.is_file():
            with suppress(OSError):
                return ctypes.CDLL(str(place))
        part = Path(own) / "part.so"
        command = [compiler, *flags, "-o", str(part), str(SOURCE)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        beside = folder / f"{place.stem}.{os.getpid()}"
        shutil.copyfile(part, beside)
        beside.replace(place)
        return ctypes.CDLL(str(place))


def _kept() -> Path | None:
    """The user's own folder for what is built; None where there is none, or another may write it."""
    try:
        folder = cache_folder("native")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except (OSError, RuntimeError):
        return None
    own = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
    return folder if own and os.access(folder, os.W_OK) else None


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    place, number = ctypes.c_void_p, ctypes.c_int64
    found.layer_before.argtypes = [place, place, number, *[place] * 5, ctypes.c_int]
    found.layer_after.argtypes = [place, place, place, number, place, ctypes.c_int]
    found.matrix_product.argtypes = [place, place, number, place, ctypes.c_int]
    found.attend.argtypes = [place, place, place, number, place, *[number] * 4, ctypes.c_float, place, ctypes.c_int]
    found.row_best.argtypes = [place, number, number, place, place]
    found.row_figures.argtypes = [place, number, number, place, number, place]
    found.row_draw.argtypes, found.row_draw.restype = [place, number, ctypes.c_uint64], number
    for name in ("layer_before", "layer_after", "matrix_product", "attend", "row_best", "row_figures"):
        getattr(found, name).restype = None
    return found


def cache_folder(name: str) -> Path:
    """The folder of that name in the user's cache; it need not be there."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "decoding-workbench" / name
