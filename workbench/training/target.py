"""Training of the embedded models: one tokenizer, a target, and a draft distilled from it. Resumable.

    python -m workbench.training.target tokenizer
    python -m workbench.training.target target [--work DIR] [--minutes 60]
    python -m workbench.training.target target-long [--work DIR]
    python -m workbench.training.target draft  [--work DIR]
    python -m workbench.training.target export [--work DIR]      # bf16 safetensors and the model cards

Both models see the corpus of `corpus.py` in shuffled windows, short ones first, then at the full context. The target
has a second stage ("target-long"): it goes on from the first with a larger rotary base and long windows, the last ones
at the full context. In most long windows early spans return further on, half of them shuffled first, so that copying
from far back is trained. Hidden matrices are trained by Muon, embeddings and norms by AdamW. The draft is trained on
the first stage's full next-token law (KL, temperature 1) mixed with the text itself.

Sources: Muon ("Muon is Scalable for LLM Training"; torch.optim.Muon); distillation of drafters (DistillSpec); the
larger base in a second stage ("Effective Long-Context Scaling of Foundation Models").
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from workbench.training import corpus
from workbench.training.checkpoint import Checkpoint, rate_share

END = "<|endoftext|>"
TOKENIZER = corpus.HERE / "tokenizer"


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule of one stage; lengths in tokens.

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
    window: int = 256
    context: int = 2048
    full_share: float = 0.2
    copies: float = 0.75
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    warmup: int = 60
    decay_share: float = 0.6
    seed: int = 1
    distil: float = 0.0
    rope_theta: float = 10_000.0
    start: str | None = None

    @property
    def steps(self) -> int:
        return self.tokens // self.batch


TARGET = Recipe(width=256, layers=8, heads=8, kv_heads=4, hidden=704)
DRAFT = Recipe(width=128, layers=3, heads=4, kv_heads=2, hidden=352, tokens=6_500_000, full_share=0.1, distil=0.8)
LONG = replace(
    TARGET,
    start="target",
    tokens=3_300_000,
    window=1024,
    full_share=0.25,
    rope_theta=200_000.0,
    muon_rate=0.008,
    adam_rate=1.2e-3,
    warmup=20,
    decay_share=0.7,
)
RECIPES = {"target": TARGET, "target-long": LONG, "draft": DRAFT}


def build(recipe: Recipe):
    """A randomly initialised Llama of the recipe's shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=recipe.width,
        intermediate_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=recipe.context,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def train_tokenizer() -> None:
    """Byte-level BPE with 4096 tokens on the training split; id 0 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=True,
    )
    tokenizer.train_from_iterator(corpus.documents("train"), trainer)
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


def batch_at(data: np.ndarray, recipe: Recipe, step: int) -> torch.Tensor:
    """The windows of one step, int64 (rows, window + 1): a function of the step alone, so a resumed run is the same.

    Each epoch cuts the text at a fresh offset and shuffles the windows.
    """
    full = step >= recipe.steps * (1 - recipe.full_share)
    window = recipe.context if full else recipe.window
    rows = recipe.batch // window
    count = (len(data) - 2 * window) // window
    out = []
    for row in range(step * rows, (step + 1) * rows):
        epoch, place = divmod(row, count)
        rng = np.random.default_rng((recipe.seed, window, epoch))
        offset = int(rng.integers(window))
        index = int(rng.permutation(count)[place])
        piece = data[offset + index * window :][: window + 1].astype(np.int64)
        if window > 512:
            plant_copies(piece, recipe.copies, np.random.default_rng((recipe.seed, row)))
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


def optimizers(model, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.02, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@torch.no_grad()
def start_from(draft, teacher) -> None:
    """Give the draft the teacher's token geometry: the leading principal directions of its embeddings."""
    wide = teacher.get_input_embeddings().weight
    left, sizes, _ = torch.linalg.svd(wide.float(), full_matrices=False)
    narrow = draft.get_input_embeddings().weight
    width = narrow.shape[1]
    narrow.copy_(left[:, :width] * sizes[:width])


def loss_of(model, teacher, batch: torch.Tensor, distil: float) -> torch.Tensor:
    """Cross-entropy per token in nats, mixed with KL(target ‖ draft) where there is a teacher."""
    logits = model(batch[:, :-1], use_cache=False).logits.flatten(0, 1)
    loss = F.cross_entropy(logits.float(), batch[:, 1:].flatten())
    if teacher is None:
        return loss
    with torch.no_grad():
        law = teacher(batch[:, :-1], use_cache=False).logits.flatten(0, 1).float().log_softmax(-1)
    divergence = F.kl_div(logits.float().log_softmax(-1), law, log_target=True, reduction="batchmean")
    return (1 - distil) * loss + distil * divergence


def train(name: str, work: Path, minutes: float, tokens: int | None, strict: bool, compiled: bool) -> None:
    """Run or resume one model; a checkpoint every 100 steps and at the end (also on Ctrl-C or when time is up)."""
    recipe = RECIPES[name] if tokens is None else replace(RECIPES[name], tokens=tokens)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = encode("train", work, strict)
    model = build(recipe).to(device)
    teacher = None
    if recipe.distil:
        teacher = build(RECIPES["target"]).to(device)
        teacher.load_state_dict(torch.load(work / "target.pt", weights_only=True)["model"])
        teacher.eval().requires_grad_(False)
    if recipe.start:
        model.load_state_dict(torch.load(work / f"{recipe.start}.pt", weights_only=True)["model"])
    elif teacher is not None:
        start_from(model, teacher)
    steppers = optimizers(model, recipe)
    saved = Checkpoint(work / f"{name}.pt", model, steppers, asdict(recipe))
    step = saved.resume()
    forward = torch.compile(model, dynamic=False) if compiled else model
    guide = torch.compile(teacher, dynamic=False) if compiled and teacher is not None else teacher
    end = time.monotonic() + minutes * 60
    log = (work / f"{name}.log.jsonl").open("a")
    bar = tqdm(total=recipe.steps, initial=step, desc=name, unit="step", dynamic_ncols=True)
    try:
        while step < recipe.steps and time.monotonic() < end:
            share = rate_share(step, recipe.steps, recipe.warmup, recipe.decay_share)
            for stepper, rate in zip(steppers, (recipe.muon_rate, recipe.adam_rate), strict=True):
                for group in stepper.param_groups:
                    group["lr"] = rate * share
            batch = batch_at(data, recipe, step).to(device)
            total = 0.0
            parts = batch.split(max(1, 4096 // (batch.shape[1] - 1)))
            for part in parts:
                with torch.autocast(device, dtype=torch.bfloat16):
                    loss = loss_of(forward, guide, part, recipe.distil) / len(parts)
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad(set_to_none=True)
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{total:.3f}")
            log.write(json.dumps({"step": step, "loss": round(total, 4), "rate": round(share, 4)}) + "\n")
            if step % 100 == 0:
                saved.keep(step)
                log.flush()
    finally:
        saved.keep(step)
        bar.close()
    from workbench.training.evaluate import loss_and_accuracy  # which imports this module

    figures = ", ".join(f"{key} {value:.3f}" for key, value in loss_and_accuracy(model.cpu().eval(), work).items())
    print(f"{name}: step {step} of {recipe.steps}; held-out {figures}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["tokenizer", *RECIPES, "export"])
    parser.add_argument("--work", type=Path, default=Path("training"), help="folder for token files and checkpoints")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time; run again to go on")
    parser.add_argument("--tokens", type=int, help="another number of training tokens")
    parser.add_argument("--any-python", action="store_true", help="accept another Python's standard library")
    parser.add_argument("--compile", action="store_true", help="torch.compile the forward pass")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.what == "tokenizer":
        train_tokenizer()
    elif options.what == "export":
        from workbench.training.export import export

        export(options.work)
    else:
        strict = not options.any_python
        train(options.what, options.work, options.minutes, options.tokens, strict, options.compile)


if __name__ == "__main__":
    main()
