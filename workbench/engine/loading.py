"""Loading models: the embedded pair, a hub id, a local directory; safetensors only, no remote code unless asked for.

Loaded models live in one cache keyed by (path, revision, dtype, device, trust_remote_code) and are shared. transformers
is imported with the first model, which lets the app serve its page some seconds earlier.
"""

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.engine.model import LanguageModel
from workbench.errors import BadInput, Unsupported

if TYPE_CHECKING:
    from workbench.engine.adapter import TransformersModel

__all__ = ["EMBEDDED", "Model", "as_model", "companion", "load", "register_model", "resolve_device", "resolve_dtype"]

PRETRAINED = Path(__file__).parent.parent / "pretrained"
EMBEDDED = {"embedded": "target", "embedded-draft": "draft"}

Model = LanguageModel | torch.nn.Module | str
"""What a caller may pass as a model: a `LanguageModel`, a transformers model in memory, or a name for `load`."""

_loaded: "dict[tuple, TransformersModel]" = {}
_registered: dict[str, LanguageModel] = {}
_lock = threading.Lock()


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the CPU. Raises Unsupported where this machine or build lacks it."""
    if device is None or device == "auto":
        return torch.device("cuda" if device == "auto" and torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise BadInput(f"unknown device {device!r}; expected cpu, cuda, cuda:0 or auto") from None
    if found.type == "cuda" and (not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count()):
        raise Unsupported(
            f"device {device!r} is not here: torch {torch.__version__} sees no such GPU; use device='cpu'"
        )
    if found.type not in ("cpu", "cuda"):
        raise Unsupported(f"device {device!r} is not served; expected cpu or cuda")
    return found


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """A torch dtype from its name; None means fp32 on a CPU and the checkpoint's own dtype on a GPU."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else None
    if isinstance(dtype, torch.dtype):
        return dtype
    names = {n: getattr(torch, n) for n in ("float32", "float64", "bfloat16", "float16")}
    if dtype not in names:
        raise BadInput(f"unknown dtype {dtype!r}; expected one of {', '.join(names)}")
    return names[dtype]


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: str | Path | None = None,
) -> "TransformersModel":
    """Load a causal language model: "embedded", "embedded-draft", a hub id or a local directory.

    Parameters
    ----------
    device: "cpu" (default), "cuda", "cuda:1" or "auto".
    dtype: "float32" (default on a CPU), "bfloat16", …; None on a GPU keeps the checkpoint's own.
    tokenizer: where to read the tokenizer from, if not from `name`.

    Raises
    ------
    BadInput: no such directory or hub entry, unknown dtype. Unsupported: a device this machine lacks, an architecture
    the engine cannot serve, a checkpoint without safetensors weights (pickle files are never read).
    """
    if str(name) in _registered:
        return _registered[str(name)]
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    name = str(name)
    source = str(PRETRAINED / EMBEDDED[name]) if name in EMBEDDED else name
    key = (source, revision, kind, str(where), trust_remote_code)
    with _lock:
        if key not in _loaded:
            _loaded[key] = _load(name, source, where, kind, revision, trust_remote_code, tokenizer, key)
        return _loaded[key]


def register_model(name: str, model: Any, tokenizer: Any = None) -> LanguageModel:
    """Give a model in memory a name, so that declarations (`DraftModel("mine")`) and the app can use it.

    `model`: a transformers model, or anything that follows the `LanguageModel` protocol.
    """
    if name in EMBEDDED:
        raise BadInput(f"the name {name!r} belongs to an embedded model; choose another")
    _registered[name] = _wrap(model, tokenizer) if isinstance(model, torch.nn.Module) else model
    return _registered[name]


def as_model(given: Model) -> LanguageModel:
    """The language model meant."""
    if isinstance(given, str):
        return load(given)
    return _wrap(given) if isinstance(given, torch.nn.Module) else given


def _wrap(model: torch.nn.Module, tokenizer: Any = None) -> LanguageModel:
    from workbench.engine.adapter import wrap

    return wrap(model, tokenizer)


def known_models() -> list[str]:
    """Names that `load` takes without a path: the embedded models and those registered in this process."""
    return [*EMBEDDED, *sorted(_registered)]


def companion(lm: LanguageModel, name: str) -> LanguageModel:
    """The second model of a decoder (draft, small model), on the first one's device and in its dtype.

    Raises BadInput where the two vocabularies differ.
    """
    other = load(name, device=lm.device, dtype=lm.dtype)
    ours, theirs = (getattr(m.tokenizer, "get_vocab", lambda: None)() for m in (lm, other))
    same = ours == theirs if ours is not None and theirs is not None else lm.vocab_size == other.vocab_size
    if not same:
        raise BadInput(
            f"{lm.name!r} and {other.name!r} have different vocabularies ({lm.vocab_size} and {other.vocab_size}"
            " tokens); expected two models that share one tokenizer"
        )
    return other


def _load(name, source, device, dtype, revision, trust_remote_code, tokenizer, key) -> "TransformersModel":
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from workbench.engine.adapter import TransformersModel, refuse_unserved

    local = Path(source).expanduser()
    if local.exists():
        check_directory(local)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise BadInput(
            f"no model directory {name!r}; expected a folder with config.json and *.safetensors, or a hub id"
        )
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        if getattr(config, "is_encoder_decoder", False):
            raise Unsupported(f"{name!r} is an encoder-decoder; the engine serves decoder-only causal language models")
        with _quiet(name in EMBEDDED):
            model = AutoModelForCausalLM.from_pretrained(
                source, config=config, dtype=dtype or "auto", use_safetensors=True, **options
            )
    except Unsupported:
        raise
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        if "safetensors" in str(error) and ".bin" in str(error):
            raise Unsupported(
                f"{name!r} has no safetensors weights; pickle checkpoints are not read: {first}"
            ) from error
        if "trust_remote_code" in str(error):
            raise Unsupported(f"{name!r} needs its own code; pass trust_remote_code=True if you trust it") from error
        if isinstance(error, ValueError):
            raise Unsupported(f"{name!r} cannot be loaded as a causal language model: {first}") from error
        raise BadInput(
            f"cannot find model {name!r}: expected 'embedded', 'embedded-draft', a local directory or a reachable"
            f" hub id ({first})"
        ) from error
    refuse_unserved(model)
    try:
        reader = AutoTokenizer.from_pretrained(str(tokenizer or _tokenizer_of(local, source)), **options)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise BadInput(f"{name!r} has no readable tokenizer: {first}; pass tokenizer=… with one that fits") from error
    return TransformersModel(model.to(device).eval(), reader, name=name, key=key)


@contextmanager
def _quiet(small: bool):
    """No progress bar for a model that loads in a blink."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if small:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if small and shown:
            logging.enable_progress_bar()


def _tokenizer_of(local: Path, source: str) -> Path | str:
    """The embedded models share the tokenizer beside them."""
    shared = PRETRAINED / "tokenizer"
    return shared if local.parent == PRETRAINED and shared.exists() else source


def check_directory(folder: Path) -> None:
    """Raise in one line where a local folder holds no model, or only pickle weights."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{str(folder)!r} holds no model: config.json is missing")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        if pickled:
            raise Unsupported(
                f"{str(folder)!r} has only pickle weights ({pickled[0]}), which can run code when read; "
                "convert them to safetensors first"
            )
        raise BadInput(f"{str(folder)!r} holds no weights: expected *.safetensors")
