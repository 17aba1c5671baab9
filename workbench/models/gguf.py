"""GGUF files: read and dequantized by transformers once, then kept as a folder that `load` reads like any other.

What is kept lies in the user's cache folder, under what says which file it is of (path, size, time). It is made beside
its place and then named, so that it is whole or not there.
"""

import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from workbench.errors import BadInput, Unsupported
from workbench.models import checkpoint
from workbench.models.progress import Progress
from workbench_kernels.native import cache_folder

MAGIC = b"GGUF"
NEEDED = ("gguf", "accelerate")  # by transformers' reader


def is_gguf(place: Path) -> bool:
    """Whether a path is a GGUF file, by its first bytes."""
    try:
        with place.open("rb") as opened:
            return opened.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def converted(file: Path, progress: Progress | None = None) -> Path:
    """The folder with the model of a GGUF file: float32 safetensors, config.json, tokenizer.json. Made at first use.

    progress: told "converting", and bytes of the file.

    Raises BadInput where the file is damaged or cannot be kept, Unsupported where packages are missing or transformers
    does not read its architecture.
    """
    key = hashlib.sha256(repr(checkpoint.facts([file])).encode()).hexdigest()[:32]
    place = cache_folder("gguf") / key
    if not place.is_dir():
        missing = [name for name in NEEDED if find_spec(name) is None]
        if missing:
            raise Unsupported(
                f"reading GGUF files needs {' and '.join(missing)}: pip install 'decoding-workbench[gguf]'"
            )
        with checkpoint.door(str(file), "cannot be loaded"), _beside(place) as folder:
            _convert(file, folder, progress or (lambda step, done, total: None))
    return place


@contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """A folder that takes its place once it is filled; where another process was first, that one's stays."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="making-", dir=place.parent))
    except OSError as error:
        raise BadInput(f"the converted model cannot be kept in {place.parent}: {error.strerror}") from error
    try:
        yield folder
        try:
            folder.rename(place)
        except OSError:
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _convert(file: Path, folder: Path, progress: Progress) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    size, given = file.stat().st_size, {"gguf_file": file.name}
    progress("converting", 0, size)
    kind = _quantization(file)
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **given)
    model.hf_quantizer = None  # its weights are plain numbers by now
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.config.gguf_quantization = kind
    model.save_pretrained(folder)
    progress("converting", size * 2 // 3, size)
    AutoTokenizer.from_pretrained(file.parent, **given).save_pretrained(folder)
    progress("converting", size, size)


def _quantization(file: Path) -> str:
    """The format that most numbers of a file are stored in, by the name GGUF gives it."""
    from gguf import GGUFReader

    counts: Counter[str] = Counter()
    for tensor in GGUFReader(str(file)).tensors:
        counts[tensor.tensor_type.name] += int(tensor.n_elements)
    if not counts:
        raise BadInput(f"{file.name} holds no weights")
    return counts.most_common(1)[0][0]
