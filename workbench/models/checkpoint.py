"""What the files of a model say, told from their headers before a weight is read: names, dtypes, shapes, a digest.

Weights are `model.safetensors`, or the files that `model.safetensors.index.json` names, all in one folder.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from workbench.errors import BadInput, Unsupported, WorkbenchError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
READ = (".json", ".safetensors", ".model", ".txt", ".jinja", ".py")  # suffixes of what a model is loaded from
OBJECTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX)
PICKLES = (".bin", ".pt", ".pth")
FLOATS = {"F64", "F32", "F16", "BF16"}
_CHUNK = 2**22


class Entry(NamedTuple):
    """A tensor in a file: its dtype by the format's own name, its shape, and where its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int


def some(names: Iterable[Any], most: int = 3) -> str:
    """A few names and the number of the others.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    names = [str(name) for name in names]
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def check_directory(folder: Path, name: str) -> dict[str, Entry]:
    """The tensors of a local folder by name. Raises, in one line, where it holds no model, only pickle weights, or
    files that are damaged or point elsewhere."""
    if not (folder / "config.json").is_file():
        what = "it is a file, not a folder" if folder.is_file() else "config.json is missing"
        raise BadInput(f"{name!r} holds no model: {what}")
    if (folder / "adapter_config.json").exists():
        raise Unsupported(f"{name!r} holds an adapter beside the model; merge it into the weights and save them first")
    for file in OBJECTS:
        refuse_no_object(folder / file, name)
    if (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif (folder / INDEX).is_file():
        files = mapped(folder / INDEX, name)
    elif pickled := sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES):
        raise Unsupported(
            f"{name!r} has only pickle weights ({pickled[0]}), which can run code when read; convert them to"
            " safetensors first"
        )
    else:
        raise BadInput(f"{name!r} holds no weights: expected {WEIGHTS} or {INDEX}")
    found: dict[str, Entry] = {}
    for file in files:
        if not (folder / file).is_file():
            raise BadInput(f"{name!r} is not whole: {INDEX} names {file!r}, which is missing")
        found |= _header(folder / file, name)
    return found


def refuse_no_object(file: Path, name: str) -> None:
    """Raise BadInput where a file is there and holds no JSON object."""
    try:
        found = json.loads(file.read_bytes()) if file.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{name!r} is damaged: {file.name} is no JSON ({first_line(error)})") from None
    if not isinstance(found, dict):
        raise BadInput(f"{name!r} is damaged: {file.name} holds {type(found).__name__}, expected a JSON object")


def mapped(index: Path, name: str) -> list[str]:
    """The files an index names, in order. Raises where one is no safetensors file of the same folder."""
    files: list[str] = []
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        files = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    if not files or not all(isinstance(file, str) for file in files):
        raise BadInput(f"{name!r} is damaged: {INDEX} holds no weight_map of names to files")
    for file in files:
        if not file.endswith(".safetensors"):
            raise Unsupported(f"{name!r}: {INDEX} points to {file!r}; only safetensors are read, never pickles")
        if Path(file).name != file or "\\" in file:
            raise Unsupported(f"{name!r}: {INDEX} points to {file!r}, outside the folder of the model")
    return files


def _header(file: Path, name: str) -> dict[str, Entry]:
    """The tensors of one safetensors file, whose header and length were found to agree."""
    from safetensors import safe_open

    try:
        with safe_open(file, "pt"), file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            table = json.loads(opened.read(size))
    except Exception as error:  # whatever the library finds wrong with it
        raise BadInput(f"{name!r} is damaged: {file.name} cannot be read ({first_line(error)})") from None
    table.pop("__metadata__", None)
    return {
        key: Entry(t["dtype"], tuple(t["shape"]), file, *(8 + size + offset for offset in t["data_offsets"]))
        for key, t in table.items()
    }


def refuse_misfits(name: str, model: nn.Module, found: Mapping[str, Entry]) -> None:
    """Raise BadInput, by name, where tensors have other sizes than the model asks for or are no floating-point numbers,
    or where it asks for more numbers than there are. model: as its config describes it, on the device "meta"."""
    expected = {key: tuple(weight.shape) for key, weight in model.named_parameters(remove_duplicate=False)}
    wrong = [
        f"{key} {list(entry.shape)} for {list(expected[key])}"
        for key, entry in found.items()
        if key in expected and expected[key] != entry.shape
    ]
    if wrong:
        raise BadInput(f"{name!r}: its files do not fit its config.json: {some(wrong)}; one is of another model")
    coded = [f"{key} {entry.dtype}" for key, entry in found.items() if key in expected and entry.dtype not in FLOATS]
    if coded:
        raise BadInput(f"{name!r}: weights are no floating-point numbers, and config.json names no code: {some(coded)}")
    if sum(weight.numel() for weight in model.parameters()) > sum(prod(entry.shape) for entry in found.values()):
        there = {id(weight) for key, weight in model.named_parameters(remove_duplicate=False) if key in found}
        lacking = [key for key, weight in model.named_parameters() if id(weight) not in there]
        raise BadInput(f"{name!r} is not whole: weights are missing from its files: {some(lacking)}")


def stamp(*folders: Path | None) -> tuple:
    """What changes when a file that a model is loaded from does."""
    files = (file for folder in filter(None, folders) for file in folder.iterdir() if file.suffix in READ)
    return facts(file for file in files if file.is_file())


def facts(files: Iterable[Path]) -> tuple:
    """Path, size, time and inode of files, in the order of their paths."""
    stats = ((str(file), file.stat()) for file in files)
    return tuple(sorted((path, s.st_size, s.st_mtime_ns, s.st_ino) for path, s in stats))


def digest(tensors: Mapping[str, Entry]) -> str:
    """SHA-256 over all tensors in the order of their names: name, dtype, shape and bytes; how they are spread over
    files makes no difference."""
    total = hashlib.sha256()
    for name, entry in sorted(tensors.items()):
        total.update(f"{name} {entry.dtype} {list(entry.shape)}\n".encode())
        with entry.file.open("rb") as opened:
            opened.seek(entry.begin)
            for at in range(entry.begin, entry.end, _CHUNK):
                total.update(opened.read(min(entry.end - at, _CHUNK)))
    return total.hexdigest()


@contextmanager
def door(name: str, what: str, remedy: str = "") -> Iterator[None]:
    """Whatever a library raises while a model is loaded becomes one line that names the model."""
    try:
        yield
    except WorkbenchError as error:
        if name in str(error):
            raise
        raise type(error)(f"{name!r}: {error}") from error
    except Exception as error:
        first = first_line(error)
        if "trust_remote_code" in str(error):
            raise Unsupported(f"{name!r} needs its own code; pass trust_remote_code=True if you trust it") from error
        kind = Unsupported if isinstance(error, ValueError | ImportError) and not remedy else BadInput
        raise kind(f"{name!r} {what}: {first}{remedy}") from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line: its first line, and the second where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0]).rstrip(" ,;:")
    text = f"{type(error).__name__}: {text}" if isinstance(error, KeyError | ZeroDivisionError | TypeError) else text
    return text if len(text) <= 300 else text[:300] + "…"
