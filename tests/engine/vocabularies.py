"""Small tokenizers of the three kinds, built here, as transformers has them; and random sequences of their tokens."""

import random
from os.path import commonprefix

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workbench.engine.text import ALPHABET, Detokenizer, decode

__all__ = [
    "CHARACTERS", "KINDS", "READERS", "added", "as_bytes", "byte_fallback", "byte_level", "llama_like", "sequence",
    "texts_of", "word_piece",
]  # fmt: skip

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2 and Qwen: every token is bytes; some hold half a character, and an added one has a space in it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("a", "b"), ("Ã", "©"), ("ð", "Ł"), ("Ģ", "ð"), ("b", "æ"), ("¼", "¢")]
    vocab = {piece: i for i, piece in enumerate([*letters, *("".join(pair) for pair in merges)])}
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    t.add_special_tokens(["<|end|>", "<｜of text｜>"])
    return PreTrainedTokenizerFast(tokenizer_object=t, eos_token="<|end|>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Gemma and XLM-R with bytes: Unigram, spaces written as ▁, unknown characters as bytes."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "▁a", "▁b", "ab", "▁▁", "é"]
    t = Tokenizer(models.Unigram([(piece, -1.0 - i / 100) for i, piece in enumerate(pieces)], 0, byte_fallback=True))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    t.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return PreTrainedTokenizerFast(tokenizer_object=t, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def llama_like() -> PreTrainedTokenizerFast:
    """As Llama 2: BPE, a space before the text that decoding strips again, unknown characters as bytes."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "▁a", "▁b", "ab"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "b"), ("a", "b")]
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    chain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    t.decoder = decoders.Sequence(chain)
    return PreTrainedTokenizerFast(tokenizer_object=t, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT: words, their continuations after ##, punctuation drawn to the word before; U+FFFD is a word too."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", "a", "b", "##a", "##b", "##ab", "ab", ".", ",", "'", "s", "n't", "é", "\ufffd"]
    t = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    t.pre_tokenizer, t.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=t, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


READERS = {"byte_level": "bytes", "byte_fallback": "pieces", "llama_like": "pieces", "word_piece": "whole"}
CHARACTERS = ["\n", "é", "漢", "字", "\u0e01", "😂", "🎉", "\ufffd", "\u200d"]
KINDS = {make.__name__: make for make in (byte_level, byte_fallback, llama_like, word_piece)}


def as_bytes(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """A text as one token for each byte."""
    if "<0x00>" in tokenizer.get_vocab():
        return tokenizer.convert_tokens_to_ids([BYTES[byte] for byte in text.encode()])
    names = {byte: letter for letter, byte in ALPHABET.items()}
    return tokenizer.convert_tokens_to_ids([names[byte] for byte in text.encode()])


def texts_of(tokenizer, prompt: list[int], ids: list[int]) -> list[str]:
    """The text of every token, the last one with what was held."""
    state = Detokenizer(tokenizer, prompt)
    texts = [state.push(token) for token in ids]
    return [*texts[:-1], texts[-1] + state.rest] if texts else []


def added(tokenizer, prompt: list[int], ids: list[int]) -> str:
    """What the tokenizer's decoding of all gains over that of the prompt, or over what stands of it."""
    before, whole = decode(tokenizer, prompt), decode(tokenizer, prompt + ids)
    return whole[len(commonprefix((before, whole))) :]


def sequence(draw: random.Random, kind: str, size: int, count: int) -> list[int]:
    """Random tokens; of byte fallback a run of bytes is whole characters, a part of one, or no UTF-8 at all."""
    if kind in ("byte_level", "word_piece"):
        whole = kind == "word_piece" or draw.random() < 0.5
        characters = byte_level().encode("".join(draw.choices(CHARACTERS, k=count)))
        return draw.choices(range(size), k=count) if whole else characters
    ids: list[int] = []
    while len(ids) < count:
        run = "".join(draw.choices(CHARACTERS, k=draw.randint(1, 6))).encode()
        broken = bytes(draw.choices(range(128, 192), k=draw.randint(1, 6)))
        cut = draw.choice(CHARACTERS).encode()[:-1]
        ids += [draw.choice([0, 1, 2, *range(259, size)]), *(3 + byte for byte in draw.choice([b"", run, broken, cut]))]
    return ids
