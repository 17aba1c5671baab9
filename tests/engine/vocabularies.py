"""Small tokenizers of the three kinds, built here, as transformers has them."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workbench.engine.text import ALPHABET

__all__ = ["KINDS", "as_bytes", "byte_fallback", "byte_level", "llama_like", "word_piece"]

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


KINDS = {make.__name__: make for make in (byte_level, byte_fallback, llama_like, word_piece)}


def as_bytes(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """A text as one token for each byte."""
    if "<0x00>" in tokenizer.get_vocab():
        return tokenizer.convert_tokens_to_ids([BYTES[byte] for byte in text.encode()])
    names = {byte: letter for letter, byte in ALPHABET.items()}
    return tokenizer.convert_tokens_to_ids([names[byte] for byte in text.encode()])
