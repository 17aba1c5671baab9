"""Stages of the embedded models: what their recipes share, one tokenizer among it.

All stages see the corpus of `corpus.py` in shuffled windows, short ones first, then at the full context. In most long
windows early spans return further on, half of them shuffled first, so that copying from far back is trained.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from workbench import declare
from workbench.training import corpus
from workbench.training.fit import Recipe, train

VOCABULARY, END = 4096, "<|endoftext|>"
TOKENIZER = corpus.HERE / "tokenizer"
ROWS = 4096  # tokens of a batch that are computed at a time


@dataclass(frozen=True, kw_only=True)
class Stage(Recipe):
    """A recipe with the sizes of a Llama and its windows; lengths in tokens.

    `full_share` is the share of the steps at the full context, at the end; `copies` the share of long windows (those
    of over 512 tokens) with repeated spans; `start` the stage whose weights this one goes on from.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    tokens: int = 12_250_000
    batch: int = 8192
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    weight_decay: float = 0.02
    warmup: int = 60
    seed: int = 1
    window: int = 256
    context: int = 2048
    full_share: float = 0.2
    copies: float = 0.75
    rope_theta: float = 10_000.0
    start: str | None = None

    def begin(self, model: Any, work: Path) -> Any:
        """Give a new model the weights that training goes on from; its teacher, if it has one."""
        if self.start:
            model.load_state_dict(checkpoint(self.start, work)[0].state_dict())

    def loss(self, model: Any, teacher: Any, batch: torch.Tensor) -> torch.Tensor:
        """Cross-entropy per token in nats of windows [rows, length + 1]."""
        logits = model(batch[:, :-1], use_cache=False).logits.flatten(0, 1)
        return F.cross_entropy(logits.float(), batch[:, 1:].flatten())


def build(stage: Stage) -> Any:
    """A randomly initialised Llama of the stage's shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(stage.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=stage.width,
        intermediate_size=stage.hidden,
        num_hidden_layers=stage.layers,
        num_attention_heads=stage.heads,
        num_key_value_heads=stage.kv_heads,
        max_position_embeddings=stage.context,
        rope_parameters={"rope_type": "default", "rope_theta": stage.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def checkpoint(name: str, work: Path) -> tuple[Any, int]:
    """The model of a stage as far as it is trained, and its steps. Raises FileNotFoundError where there is none."""
    state = torch.load(work / f"{name}.pt", weights_only=True, map_location="cpu")
    model = build(declare.get("recipe", name)())
    model.load_state_dict(state["model"])
    return model, state["step"]


def train_tokenizer() -> None:
    """Byte-level BPE on the training split; id 0 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    how = {"special_tokens": [END], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": True}
    tokenizer.train_from_iterator(corpus.documents("train"), trainers.BpeTrainer(vocab_size=VOCABULARY, **how))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, clean_up_tokenization_spaces=False)
    fast.save_pretrained(TOKENIZER)


def encode(split: str, work: Path, strict: bool = True) -> np.ndarray:
    """All documents of a split as one uint16 array, each ended by id 0; cached in `work`."""
    file = work / f"{split}.npy"
    if not file.exists():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
        encoded = tokenizer.encode_batch(corpus.documents(split, strict))
        np.save(file, np.concatenate([np.array([*e.ids, 0], dtype=np.uint16) for e in encoded]))
    return np.load(file)


def batch_at(data: np.ndarray, stage: Stage, step: int) -> torch.Tensor:
    """The windows of one step, int64 (rows, window + 1): a function of the step alone, so a resumed run is the same.

    Each epoch cuts the text at a fresh offset and shuffles the windows.
    """
    full = step >= stage.steps * (1 - stage.full_share)
    window = stage.context if full else stage.window
    rows = stage.batch // window
    count = (len(data) - 2 * window) // window
    out = []
    for row in range(step * rows, (step + 1) * rows):
        epoch, place = divmod(row, count)
        rng = np.random.default_rng((stage.seed, window, epoch))
        offset = int(rng.integers(window))
        index = int(rng.permutation(count)[place])
        piece = data[offset + index * window :][: window + 1].astype(np.int64)
        if window > 512:
            plant_copies(piece, stage.copies, np.random.default_rng((stage.seed, row)))
        out.append(piece)
    return torch.from_numpy(np.stack(out))


def plant_copies(piece: np.ndarray, share: float, rng: np.random.Generator, per_thousand: int = 6) -> None:
    """With probability `share`, repeat some spans of a window further on, in place.

    Half of them are shuffled first, so that nothing but copying can tell what comes next.
    """
    if rng.random() >= share:
        return
    for _ in range(per_thousand * len(piece) // 1000):
        length = int(rng.integers(24, 128))
        source = int(rng.integers(0, len(piece) - 2 * length))
        target = int(rng.integers(source + length, len(piece) - length + 1))
        if rng.random() < 0.5:
            piece[source : source + length] = rng.permutation(piece[source : source + length])
        piece[target : target + length] = piece[source : source + length]


def train_stage(
    name: str, stage: Stage, work: Path, minutes: float, tokens: int | None, strict: bool, compiled: bool
) -> None:
    """Run or resume one stage on the device there is; see `fit.train`. Prints its held-out figures."""
    stage = stage if tokens is None else replace(stage, tokens=tokens)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    work.mkdir(parents=True, exist_ok=True)
    data, model = encode("train", work, strict), build(stage).to(device)
    teacher = stage.begin(model, work)
    forward, guide = (torch.compile(m, dynamic=False) if compiled and m is not None else m for m in (model, teacher))

    def losses(step: int) -> list[Callable[[], torch.Tensor]]:
        batch = batch_at(data, stage, step).to(device)
        parts = batch.split(max(1, ROWS // (batch.shape[1] - 1)))
        return [lambda part=part: stage.loss(forward, guide, part) for part in parts]

    step = train(name, model, stage, losses, work, asdict(stage), minutes)
    from workbench.training.export import measured  # which imports this module

    figures = ", ".join(f"{key} {value:.3f}" for key, value in measured(model.cpu().eval(), work).items())
    print(f"{name}: step {step} of {stage.steps}; held-out {figures}")
