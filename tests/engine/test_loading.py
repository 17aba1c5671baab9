"""A model is what its files say, or it is refused in one line; what is remembered of files follows them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from tests.engine.small import PROMPT, folder_of, random_model, stock, words
from workbench.errors import BadInput, Unsupported
from workbench.models import hub
from workbench.models.codes import codes_of

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A checkpoint that nothing is wrong with; tests work on copies."""
    return folder_of(tmp_path_factory.mktemp("whole"), random_model())


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def config(**changes):
    def damage(folder: Path) -> None:
        told = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(told | changes))

    return damage


def weights(change):
    def damage(folder: Path) -> None:
        change(tensors := load_file(folder / FILE))
        save_file(tensors, folder / FILE, {"format": "pt"})

    return damage


def text(name: str, content: str):
    return lambda folder: (folder / name).write_text(content)


def shards(change):
    """The weights in two files and an index, whose map of names to files is changed."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / FILE)
        (folder / FILE).unlink()
        table = {}
        for part, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
            save_file({n: tensors[n] for n in names}, folder / f"part-{part}.safetensors", {"format": "pt"})
            table |= dict.fromkeys(names, f"part-{part}.safetensors")
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": change(table)}))

    return damage


def without(tensors: dict, part: str) -> None:
    for name in [name for name in tensors if part in name]:
        del tensors[name]


def cut(folder: Path) -> None:
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[: len(content) // 2])


NORM = "model.norm.weight"
DAMAGED = {
    "layers-missing": (weights(lambda w: without(w, ".layers.2.")), r"missing.*layers\.2\.self_attn\.q_proj.* 6 more"),
    "more-layers-said": (config(num_hidden_layers=50), r"missing from its files: model\.layers\.3\.self_attn"),
    "absurdly-many-layers": (config(num_hidden_layers=10**18), "config.json says 10+ layers"),
    "one-swapped": (weights(lambda w: w.update({"other": w.pop(NORM)})), r"weights are missing.*: model\.norm\.weight"),
    "unexpected": (weights(lambda w: w.update(extra=torch.ones(2))), "that the model does not have: extra"),
    "other-vocabulary": (config(vocab_size=80), r"lm_head\.weight \[64, 32\] for \[80, 32\]"),
    "memory-bomb": (config(hidden_size=4 * 10**6), r"lm_head\.weight \[64, 32\] for \[64, 4000000\]"),
    "integers": (weights(lambda w: w.update({NORM: w[NORM].int()})), r"no floating-point.*model\.norm\.weight I32"),
    "heads-0": (config(num_attention_heads=0), "cannot be loaded: ZeroDivisionError"),
    "layers-of-text": (config(num_hidden_layers="x"), "expected int, got str"),
    "no-context": (config(max_position_embeddings=0), "context of 0"),
    "config-list": (text("config.json", "[]"), "config.json holds list"),
    "config-cut": (text("config.json", "{"), "config.json is no JSON"),
    "config-deep": (text("config.json", "[" * 10**5), "config.json is no JSON"),
    "end-tokens": (text("generation_config.json", '{"eos_token_id": ["x"]}'), "end-of-text ids: expected integers"),
    "generation-cut": (text("generation_config.json", "{"), "generation_config.json is no JSON"),
    "tokenizer-list": (text("tokenizer.json", "[]"), "tokenizer.json holds list"),
    "tokenizer-empty": (text("tokenizer.json", "{}"), "no readable tokenizer"),
    "cut": (cut, "model.safetensors cannot be read"),
    "pointer": (text(FILE, "version https://git-lfs.github.com/spec/v1\nsize 12\n"), "header too large"),
    "empty": (text(FILE, ""), "header too small"),
    "index-to-pickle": (shards(lambda t: t | {NORM: "pytorch_model.bin"}), "points to 'pytorch_model.bin'; only"),
    "index-outside": (shards(lambda t: t | {NORM: "../part-0.safetensors"}), "outside the folder"),
    "index-to-nothing": (shards(lambda t: t | {NORM: "part-2.safetensors"}), "'part-2.safetensors', which is missing"),
    "index-of-numbers": (shards(lambda t: dict.fromkeys(t, 3)), "no weight_map"),
    "index-of-half": (shards(lambda t: {n: f for n, f in t.items() if "0" in f}), "weights are missing"),
    "adapter": (text("adapter_config.json", "{}"), "holds an adapter"),
    "pickles-only": (lambda folder: (folder / FILE).rename(folder / "pytorch_model.bin"), "only pickle weights"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_folder_is_refused_in_one_line(case, folder):
    """Weights made at random, a pickle read, a library's traceback: none of them for any of these."""
    damage, says = DAMAGED[case]
    damage(folder)
    with pytest.raises((BadInput, Unsupported), match=says) as caught:
        wb.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 2500, "", "a\0b", "~nobody/x", "a--b", "C:\\x", 5, None, b"x"])
def test_what_is_no_name_is_refused_in_a_short_line(name):
    with pytest.raises(BadInput, match="expected") as caught:
        wb.load(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    with pytest.raises(BadInput, match="tokenizer"):
        wb.load("embedded", tokenizer=name if name is not None else 5)


def test_sharded_weights_and_extras_that_mean_nothing_are_served(folder, whole):
    """Two files and an index give the same digest; rotary tables of old checkpoints are not unexpected."""
    plain = wb.load(whole)
    shards(lambda table: table)(folder)
    assert wb.load(folder).describe()["digest"] == plain.describe()["digest"]
    old = load_file(whole / FILE) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(old, folder / FILE, {"format": "pt"})
    assert wb.decode(wb.load(folder), PROMPT, max_new_tokens=4).token_ids == stock(plain.model, PROMPT, 4)


def test_tied_weights_are_not_missing(tmp_path):
    folder = folder_of(tmp_path, model := random_model(tie_word_embeddings=True))
    assert "lm_head.weight" not in load_file(folder / FILE)
    assert wb.decode(wb.load(folder), PROMPT, max_new_tokens=4).token_ids == stock(model, PROMPT, 4)


def test_a_missing_expert_is_refused(tmp_path):
    """Experts are joined while they are loaded: one that lacks is no missing name for the library, but an error."""
    folder = folder_of(tmp_path, random_model("Mixtral", num_local_experts=4, num_experts_per_tok=2))
    weights(lambda w: without(w, "layers.1.block_sparse_moe.experts.2.w1"))(folder)
    with pytest.raises(BadInput, match=str(folder)) as caught:
        wb.load(folder)
    assert "\n" not in str(caught.value)


def test_the_cache_holds_every_argument_and_the_files(folder, tmp_path, monkeypatch):
    """The tokenizer asked for, the path as it is meant now, and the weights as they lie there now."""
    lm = wb.load(folder)
    assert wb.load(folder) is lm and wb.load(f"{folder}/../model") is lm
    words(60).save_pretrained(tmp_path / "other")
    assert len(wb.load(folder, tokenizer=tmp_path / "other").tokenizer) == 60 and len(wb.load(folder).tokenizer) == 64
    assert wb.load(folder, dtype="float64") is not lm
    (tmp_path / "elsewhere").mkdir()
    folder_of(tmp_path / "elsewhere" / "model", random_model(seed=5))
    monkeypatch.chdir(tmp_path)
    assert wb.load("model") is lm
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert wb.load("model") is not lm
    random_model(seed=7).save_pretrained(folder)
    now = wb.decode(wb.load(folder), PROMPT, max_new_tokens=8).token_ids
    assert now == stock(random_model(seed=7), PROMPT, 8) != wb.decode(lm, PROMPT, max_new_tokens=8).token_ids


def test_weights_are_rounded_where_asked_and_traces_say_so(folder):
    """Those that bfloat16 holds stay what they are, and nothing is said of them."""
    lm, rounded = wb.load(folder), wb.load(folder, weights="bfloat16")
    assert rounded is not lm and wb.load(folder, weights="bfloat16") is rounded
    for weight, other in zip(lm.model.parameters(), rounded.model.parameters(), strict=True):
        assert torch.equal(weight.bfloat16().float(), other) and (weight.ndim == 1 or not torch.equal(weight, other))
    told = [wb.decode(one, PROMPT, max_new_tokens=1).run["models"][0]["quantization"] for one in (lm, rounded)]
    assert told == [None, "rounded to bfloat16"]
    same = wb.load("embedded", weights="bfloat16")
    assert all(map(torch.equal, same.model.parameters(), wb.load("embedded").model.parameters()))
    assert same.describe()["quantization"] is None
    with pytest.raises(BadInput, match="weights: expected bfloat16, int4 or None, got 'int2'"):
        wb.load(folder, weights="int2")


def test_weights_of_four_bits_decode_as_their_own_model(folder):
    """Greedy text is that of `generate` over the rounded weights; said in traces, and rounded once for all."""
    random_model(intermediate_size=64).save_pretrained(folder)
    lm = wb.load(folder, weights="int4")
    assert lm.describe()["quantization"] == "rounded to int4"
    assert wb.decode(lm, PROMPT, max_new_tokens=8).token_ids == stock(lm.model, PROMPT, 8)
    kinds = {name: codes_of(weight) for name, weight in lm.model.named_parameters() if weight.ndim == 2}
    assert {name: found and found[0] for name, found in kinds.items()} == {
        name: 8 if "embed" in name or "head" in name else 4 for name in kinds
    }
    lm.model.save_pretrained(folder)
    again = wb.load(folder, weights="int4")
    assert lm.body == again.body == ("fast", None) or "compiler" in str(lm.body)
    assert again is not lm and all(map(torch.equal, again.model.parameters(), lm.model.parameters()))


def test_a_file_written_over_in_place_does_not_reach_a_loaded_model(folder):
    """Weights mapped from a file are the file: zeros written there became the model's, and a shorter file a crash."""
    lm = wb.load(folder)
    before = [weight.clone() for weight in lm.model.parameters()]
    with (folder / FILE).open("r+b") as opened:
        opened.seek(200)
        opened.write(bytes((folder / FILE).stat().st_size - 200))
    assert all(map(torch.equal, before, lm.model.parameters()))


def test_a_model_in_memory_is_what_it_is():
    """`load` of a registered name ignored dtype, device and tokenizer."""
    lm = wb.register_model("in-memory", random_model())
    assert wb.load("in-memory") is lm and wb.load("in-memory", dtype="float32", device="cpu") is lm
    for asked in ({"dtype": "float64"}, {"tokenizer": "embedded"}, {"revision": "main"}, {"weights": "bfloat16"}):
        with pytest.raises(BadInput, match="a model in memory"):
            wb.load("in-memory", **asked)
    for thing in (5, None, object()):
        with pytest.raises(BadInput, match="expected a model"):
            wb.decode(thing, PROMPT)
        with pytest.raises(BadInput, match="expected a model"):
            wb.register_model("nothing", thing)


class TestHub:
    """Hub ids, from a cache as the hub's library keeps it; nothing is asked of a network."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch) -> Path:
        from huggingface_hub import constants
        from transformers.utils import hub as files

        for where, name in ((constants, "HF_HUB_CACHE"), (files, "HF_HUB_CACHE")):
            if hasattr(where, name):
                monkeypatch.setattr(where, name, str(tmp_path))
        monkeypatch.setattr(hub, "reachable", lambda: False)
        self.cache = tmp_path

    def add(self, name: str, source: Path, commit: str = "a" * 40) -> Path:
        place = self.cache / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / "main").write_text(commit)
        return Path(shutil.copytree(source, place / "snapshots" / commit))

    def test_an_unknown_id_is_refused_at_once(self):
        with pytest.raises(BadInput, match=r"cannot find model 'no/such'.*cannot be reached"):
            wb.load("no/such")

    def test_what_is_cached_is_served_and_looked_at_as_a_folder_is(self, whole):
        self.add("some/model", whole)
        lm = wb.load("some/model")
        assert wb.load("some/model") is lm and lm.name == "some/model"
        shards(lambda table: dict.fromkeys(table, "pytorch_model.bin"))(self.add("some/pickle", whole))
        with pytest.raises(Unsupported, match="only safetensors are read"):
            wb.load("some/pickle")
        config(vocab_size=80)(self.add("some/misfit", whole))
        with pytest.raises(BadInput, match=r"'some/misfit'.*for \[80, 32\]"):
            wb.load("some/misfit")
        (self.add("some/bin", whole) / FILE).unlink()
        with pytest.raises(Unsupported, match="no safetensors weights"):
            wb.load("some/bin")

    def test_another_commit_is_another_model(self, whole, tmp_path_factory):
        self.add("some/moving", whole)
        lm = wb.load("some/moving")
        self.add("some/moving", folder_of(tmp_path_factory.mktemp("next"), random_model(seed=3)), "b" * 40)
        assert wb.load("some/moving").describe()["digest"] != lm.describe()["digest"]
