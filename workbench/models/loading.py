"""Loading models: the embedded pair, an offer, a hub id, a local directory or GGUF file; no pickles, no remote code
unless asked for.

A model is what its files say: weights that are missing, unexpected or of another size are refused by name. Loaded
models live in one cache, one for all arguments of `load`, as long as the files stay as they are, and are shared.
transformers is imported with the first model, which lets the app serve its page some seconds earlier.
"""

import re
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.engine.model import LanguageModel
from workbench.engine.vocabulary import refuse_other_vocabulary
from workbench.errors import BadInput, Unsupported, shown
from workbench.models import checkpoint, codes, gguf, hub
from workbench.models.offers import OFFERS, need, present
from workbench.models.progress import Progress, reading
from workbench_kernels import native

if TYPE_CHECKING:
    from workbench.models.adapter import TransformersModel

PRETRAINED = Path(__file__).parent.parent / "pretrained"
EMBEDDED = {"embedded": "target", "embedded-draft": "draft"}

Model = LanguageModel | torch.nn.Module | str
"""What a caller may pass as a model: a `LanguageModel`, a transformers model in memory, or a name for `load`."""

DTYPES = ("float32", "float64", "bfloat16", "float16")
MOST_LAYERS = 2000  # that a config may ask for
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)
_loaded: "dict[tuple, tuple[tuple, TransformersModel]]" = {}  # by all arguments: the stamp of the files, and the model
_registered: dict[str, LanguageModel] = {}
_locks: "defaultdict[tuple, threading.Lock]" = defaultdict(threading.Lock)  # a large model keeps no other waiting


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
    if dtype not in DTYPES:
        raise BadInput(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    return getattr(torch, dtype)


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: str | Path | None = None,
    weights: str | None = None,
    progress: Progress | None = None,
) -> LanguageModel:
    """Load a causal language model: "embedded", "embedded-draft", "smollm2" once it was fetched (`workbench models get
    smollm2`), a registered name, a hub id, a local directory or a GGUF file.

    A model loaded before with the same arguments is given again, unless its files have changed since.

    Parameters
    ----------
    device: "cpu" (default), "cuda", "cuda:1" or "auto".
    dtype: "float32" (default on a CPU), "bfloat16", …; None on a GPU keeps the checkpoint's own.
    tokenizer: where to read the tokenizer from, if not from `name`.
    weights: "bfloat16" rounds the weights to it, whatever the dtype computed in; "int4" rounds them to 16
        values between the least and the largest of 32 side by side, embeddings and head to 256, and what is no matrix
        of such groups to bfloat16. On a CPU in float32 the
        compiled body then reads half the bytes, or a fifth. Lossy, and said under `quantization` in traces, unless
        they were such numbers before.
    progress: called with the step ("fetching", "converting", "loading"), the bytes done and in all; what it raises ends
    the loading.

    Raises
    ------
    BadInput: no such directory or hub entry, unknown dtype, files that are damaged or do not fit each other.
    Unsupported: a device this machine lacks, an architecture the engine cannot serve, a checkpoint without safetensors
    weights (pickle files are never read).
    """
    if isinstance(name, str) and name in _registered:
        return _as_registered(name, device, dtype, revision, tokenizer, weights)
    if weights not in (None, *ROUNDINGS):
        raise BadInput(f"weights: expected {', '.join(ROUNDINGS)} or None, got {shown(weights)}")
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    source = PRETRAINED / EMBEDDED[name] if name in EMBEDDED else place_of(need(name) if name in OFFERS else name)
    if isinstance(source, Path) and gguf.is_gguf(source):
        source = gguf.converted(source, progress)
    if tokenizer is not None:
        reader = place_of(tokenizer, "tokenizer")
    else:  # the embedded models share the one beside them
        reader = PRETRAINED / "tokenizer" if isinstance(source, Path) and source.parent == PRETRAINED else source
    key = (str(source), revision, kind, str(where), bool(trust_remote_code), str(reader), weights)
    with _locks[key]:
        now = _stamp(source, reader, revision)
        if key in _loaded and _loaded[key][0] != now:
            del _loaded[key]
        if key not in _loaded:
            lm = _load(
                str(name), source, where, kind, revision, bool(trust_remote_code), reader, weights, key, progress
            )
            _loaded[key] = (now if isinstance(source, Path) else _stamp(source, reader, revision), lm)
        return _served(_loaded[key][1])


def _as_registered(name: str, device: Any, dtype: Any, revision: Any, tokenizer: Any, weights: Any) -> LanguageModel:
    """A model in memory is what it is: BadInput where something else is asked of it."""
    lm = _served(_registered[name])
    asked = {"device": device and resolve_device(device), "dtype": dtype and resolve_dtype(dtype, lm.device)}
    for option, value in {**asked, "revision": revision, "tokenizer": tokenizer, "weights": weights}.items():
        if value is not None and (option not in asked or value != getattr(lm, option)):
            raise BadInput(
                f"{name!r} is a model in memory, in {str(lm.dtype).removeprefix('torch.')} on {lm.device}: {option}"
                " cannot be chosen for it; change the model, or register another"
            )
    return lm


def place_of(name: str | Path, what: str = "model") -> Path | str:
    """The local folder that a name means, or the name itself where it can be a hub id. Raises BadInput for others."""
    named = shown(str(name) if isinstance(name, Path) else name)
    if not isinstance(name, str | Path):
        raise BadInput(f"{what}: expected a name or a directory, got {named}")
    try:
        local = Path(name).expanduser()
        if str(name) and local.exists():
            return local.resolve()
    except (OSError, ValueError, RuntimeError):
        pass  # no path on this system
    if isinstance(name, Path) or not HUB_ID.fullmatch(name) or "--" in name or ".." in name:
        wanted = "a folder with config.json and *.safetensors, a GGUF file" if what == "model" else "a folder"
        raise BadInput(f"no {what} directory {named}; expected {wanted}, or a hub id")
    return name


def _stamp(source: Path | str, reader: Path | str, revision: str | None) -> tuple:
    """Of the files behind both names; of hub ids as far as they are on this machine."""
    folders = []
    for place, file in ((source, "config.json"), (reader, "tokenizer_config.json")):
        if isinstance(place, str):
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(place, file, revision=revision)
            place = Path(found).parent if isinstance(found, str) else None
        folders.append(place if place is None or place.is_dir() else None)
    return checkpoint.stamp(*folders)


def register_model(name: str, model: Any, tokenizer: Any = None) -> LanguageModel:
    """Give a model in memory a name, so that declarations (`DraftModel("mine")`) and the app can use it.

    `model`: a transformers model, or anything that follows the `LanguageModel` protocol.
    """
    if not isinstance(name, str) or not name:
        raise BadInput(f"register_model: expected a name, got {name!r}")
    if name in EMBEDDED or name in OFFERS:
        raise BadInput(f"the name {name!r} belongs to a model of the workbench; choose another")
    _registered[name] = _served(model, tokenizer)
    return _registered[name]


def as_model(given: Model) -> LanguageModel:
    """The language model meant, as it is now."""
    return load(given) if isinstance(given, str | Path) else _served(given)


def _served(given: Any, tokenizer: Any = None) -> LanguageModel:
    """A model in memory, after it has looked whether what it wraps was changed since (`refresh`)."""
    if isinstance(given, torch.nn.Module):
        from workbench.models.adapter import wrap

        return wrap(given, tokenizer)
    if not all(hasattr(given, name) for name in ("forward", "new_store", "vocab_size", "refresh", "gives")):
        raise BadInput(
            f"expected a model, got {type(given).__name__}: a name, a directory, a transformers model or what"
            " workbench.load gives"
        )
    given.refresh()
    if given.device.type == "cpu":
        with suppress(RuntimeError):  # torch computes what it would
            native.compiled()  # which may take seconds once: not in a run's first round
    return given


def known_models() -> list[str]:
    """Names that `load` takes without a path: the embedded models, the offers that were fetched, and those registered
    in this process."""
    return [*EMBEDDED, *filter(present, OFFERS), *sorted(_registered)]


def companion(lm: LanguageModel, name: str, progress: Progress | None = None) -> LanguageModel:
    """The second model of a decoder (draft, small model), on the first one's device and in its dtype.

    Raises BadInput where the two vocabularies differ.
    """
    given = {"device": lm.device, "dtype": lm.dtype, "progress": progress}
    other = as_model(_registered[name]) if name in _registered else load(name, **given)
    refuse_other_vocabulary(lm, other)
    return other


def _load(
    name, source, device, dtype, revision, trust_remote_code, reader, weights, key, progress
) -> "TransformersModel":
    from transformers import AutoTokenizer

    from workbench.models.adapter import TransformersModel

    shared = {"revision": revision, "trust_remote_code": trust_remote_code}
    if (isinstance(source, str) or isinstance(reader, str)) and not hub.reachable():
        shared["local_files_only"] = True
    with checkpoint.door(name, "cannot be loaded"):
        if isinstance(source, Path):
            tensors, plan = checkpoint.check_directory(source, name), _plan(name, source, shared)
        else:  # what cannot be served is refused before its weights are fetched
            folder, plan = hub.folder(source, shared), _plan(name, source, shared)
            hub.weights(source, shared, progress)
            tensors = checkpoint.check_directory(folder, name)
        if not hasattr(plan.config, "quantization_config"):
            checkpoint.refuse_misfits(name, plan, tensors)
        with reading(sum(entry.end - entry.begin for entry in tensors.values()), progress):
            model = _weights(name, source, plan.config, dtype, shared)
        if weights and _rounded(model, ROUNDINGS[weights]):
            model.config.weights_rounded = f"rounded to {weights}"
    with checkpoint.door(name, "has no readable tokenizer", "; pass tokenizer=… with one that fits"):
        for file in ("tokenizer.json", "tokenizer_config.json") if isinstance(reader, Path) else ():
            checkpoint.refuse_no_object(reader / file, str(reader))
        tokens = AutoTokenizer.from_pretrained(str(reader), **shared)
    with checkpoint.door(name, "cannot be served"):
        return TransformersModel(model.to(device).eval(), tokens, name=name, key=key, files=tensors)


def _plan(name: str, source: Path | str, shared: dict) -> Any:
    """The model that config.json describes, without weights. Raises BadInput or Unsupported where it is none for us."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from workbench.models.probing import refuse_unserved

    config = AutoConfig.from_pretrained(source, **shared)
    if getattr(config, "is_encoder_decoder", False):
        raise Unsupported(f"{name!r} is an encoder-decoder; the engine serves decoder-only causal language models")
    layers = int(getattr(config.get_text_config(), "num_hidden_layers", 0) or 0)
    if layers > MOST_LAYERS:
        raise BadInput(f"{name!r}: config.json says {layers} layers; expected at most {MOST_LAYERS}")
    with torch.device("meta"):
        plan = AutoModelForCausalLM.from_config(config, trust_remote_code=shared["trust_remote_code"])
    plan.config = config
    refuse_unserved(plan)
    return plan


def _weights(name: str, source: Path | str, config: Any, dtype: torch.dtype | None, shared: dict) -> Any:
    """The model with every weight from its files, and none that is not. Raises BadInput where they do not fit."""
    from transformers import AutoModelForCausalLM

    with _quiet(name in EMBEDDED):
        model, told = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype or "auto", use_safetensors=True, ignore_mismatched_sizes=True,
            output_loading_info=True, **shared,
        )  # fmt: skip
    for kind, meaning in _FAULTS.items():
        if found := sorted(told.get(kind) or (), key=str):
            names = (entry if isinstance(entry, str) else entry[0] for entry in found)
            raise BadInput(f"{name!r}: {meaning}: {checkpoint.some(names)}; expected a whole checkpoint of one model")
    for weight in (*model.parameters(), *model.buffers()):
        if weight.device.type == "cpu":  # it may be the file itself, mapped: who writes that anew must not reach it
            weight.data = weight.data.clone()
    return model


def _rounded(model: torch.nn.Module, to: Callable[[torch.Tensor, bool], torch.Tensor]) -> bool:
    """Round all weights, in the dtype that they have; whether that changed one."""
    ends = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)] + [model.get_output_embeddings()]
    ends = {id(p) for m in ends for p in m.parameters()}
    changed = False
    for weight in filter(torch.is_floating_point, model.parameters()):
        rounded = to(weight.data, id(weight) in ends).to(weight.dtype)
        changed = changed or not torch.equal(rounded, weight.data)
        weight.data = rounded
    return changed


def _int4(weight: torch.Tensor, end: bool) -> torch.Tensor:
    if weight.ndim < 2 or weight.shape[-1] % codes.GROUP:
        return weight.bfloat16()
    bits = 8 if end else 4
    have = codes.codes_of(weight) if weight.ndim == 2 and weight.dtype == torch.float32 else None
    return weight if have and have[0] <= bits else codes.rounded(weight, bits)


ROUNDINGS = {"bfloat16": lambda weight, end: weight.bfloat16(), "int4": _int4}


_FAULTS = {
    "missing_keys": "weights are missing from its files",
    "unexpected_keys": "its files hold weights that the model does not have",
    "mismatched_keys": "weights have other sizes than config.json says",
    "error_msgs": "weights cannot be read",
}


@contextmanager
def _quiet(small: bool):
    """No report of what the loading finds, which is refused by name; no progress bar for what loads in a blink."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.set_verbosity_error()
    if small:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if small and bars:
            logging.enable_progress_bar()
