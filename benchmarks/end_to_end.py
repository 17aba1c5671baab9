"""Greedy decoding end to end against the hardware's limit: the captured round, `model.generate`, and its compiled form.

    python benchmarks/end_to_end.py [--size 8b] [--device cuda] [--prompt 128] [--tokens 128] [--out FILE]

A Llama of random bfloat16 weights decodes greedily, one sequence. The floor is the time to read the weights once at the
bandwidth of a device copy, measured here. A figure is the share of that bandwidth an arm reaches. Times are in ms
a token without prefill, compilation or capture: for the workbench the median of whole steps, for `generate` the
difference of two lengths divided by their distance. On a CPU the floors are printed and no speed is measured.
"""

import os
import statistics

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from benchmarks.device import clock, conditions, copy_bandwidth
from benchmarks.runs import options, rounded, write
from workbench.device.round import VARIABLE
from workbench.models.adapter import wrap

SIZES = {  # layers, width, MLP width, heads, KV heads, vocabulary
    "8b": (32, 4096, 14336, 32, 8, 128256),
    "1b": (16, 2048, 8192, 32, 8, 128256),
    "tiny": (2, 64, 128, 4, 2, 256),
}
WARM = 8  # rounds before the first that counts


def build(size: str, device: str) -> LlamaForCausalLM:
    layers, width, mlp, heads, kv_heads, vocabulary = SIZES[size]
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=mlp, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, max_position_embeddings=8192, rope_theta=500000.0,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def streamed_bytes(model: LlamaForCausalLM) -> int:
    """Bytes of weights that every token reads: all but the embedding, of which it reads a row."""
    return sum(p.nbytes for p in model.parameters()) - model.get_input_embeddings().weight.nbytes


def workbench_ms(lm, prompt: list[int], tokens: int, level: str) -> tuple[float, str]:
    """Median milliseconds of a step, and what computed it. Exits where its rounds were not captured on a GPU."""
    session = wb.Session(lm, prompt, max_new_tokens=WARM + tokens + 1, level=level, ignore_eos=True)
    session.run(rounds=WARM)
    times = []
    for _ in range(tokens):
        start = clock(lm.device)
        session.step()
        times.append(clock(lm.device) - start)
    last = session.decoder.step(session.state.fork())  # at level "off" the record does not tell
    if "not_captured" in last.figures:
        raise SystemExit(f"no speed is given, for the rounds were no CUDA graph: {last.figures['not_captured']}")
    where = session.trace.run["body"]["name"]
    if level != "off":
        where = session.trace.forwards["implementation"].iloc[-1]
    return 1000 * statistics.median(times), where


def generate_ms(model, prompt: list[int], tokens: int, **options) -> float:
    """Milliseconds a token: the best of three at two lengths, so that what both share drops out."""
    ids = torch.tensor([prompt], device=model.device)
    options |= {"attention_mask": torch.ones_like(ids), "do_sample": False}

    def seconds(count: int) -> float:
        times = []
        for _ in range(4):  # the first one warms up, and compiles
            start = clock(model.device)
            model.generate(ids, max_new_tokens=count, min_new_tokens=count, **options)
            times.append(clock(model.device) - start)
        return min(times[1:])

    return 1000 * (seconds(2 * tokens) - seconds(tokens)) / tokens


def measure(model, prompt: list[int], tokens: int) -> list[dict]:
    lm = wrap(model)
    rows = []
    for level in ("off", "default"):
        ms, where = workbench_ms(lm, prompt, tokens, level)
        rows.append({"arm": f"workbench, level {level} ({where})", "ms_per_token": ms})
    compiled = {"cache_implementation": "static"}  # generate compiles the forward pass by itself with such a cache
    for arm, how in (("model.generate", {}), ("model.generate, compiled", compiled)):
        rows.append({"arm": arm, "ms_per_token": generate_ms(model, prompt, tokens, **how)})
    return rows


def same_tokens(model, prompt: list[int], tokens: int) -> int:
    """How many tokens the device round and the ordinary path spell alike before a near-tie of bfloat16 parts them."""
    texts = []
    for where in ("host", "device"):
        os.environ[VARIABLE] = where
        texts.append(wb.decode(wrap(model), prompt, max_new_tokens=tokens, level="off", ignore_eos=True).token_ids)
    del os.environ[VARIABLE]
    return next((at for at, (a, b) in enumerate(zip(*texts, strict=True)) if a != b), tokens)


def main() -> None:
    parser = options(__doc__, prompt=128, tokens=128)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, choices=("cuda", "cpu"))
    parser.add_argument("--size", choices=SIZES, help="default: 8b on a GPU, tiny on a CPU")
    given = parser.parse_args()
    gpu = given.device == "cuda"
    size = given.size or ("8b" if gpu else "tiny")
    model = build(size, given.device)
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(1, SIZES[size][5], (given.prompt,), generator=generator).tolist()
    bandwidth = copy_bandwidth(torch.device(given.device))
    bytes_ = streamed_bytes(model)
    floor = 1000 * bytes_ / bandwidth
    told = conditions(torch.device(given.device)) | {
        "dtype": "bfloat16", "size": size, "prompt": given.prompt, "tokens": given.tokens,
        "copy_GB_per_s": round(bandwidth / 1e9, 1), "weight_GB": round(bytes_ / 1e9, 3),
        "floor_ms_per_token": round(floor, 4), "same_tokens_of_32": same_tokens(model, prompt, 32),
    }  # fmt: skip
    print(told)
    if not gpu:
        print("on a CPU no speed is measured: these are the floor, and how far both ways to decode agree")
        return
    rows = measure(model, prompt, given.tokens)
    generate = next(row["ms_per_token"] for row in rows if row["arm"] == "model.generate")
    for row in rows:
        row |= {"share_of_floor": floor / row["ms_per_token"], "speedup": generate / row["ms_per_token"]}
        print({name: rounded(value) for name, value in row.items()})
    if given.out:
        write(given.out, told, rows)


if __name__ == "__main__":
    main()
