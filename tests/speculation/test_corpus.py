"""What is looked up in texts: the suffix index, tri-gram weights, counted continuations, and a user's corpus."""

import doctest
import itertools
import random
from collections import Counter

import numpy as np
import pytest

import workbench as wb
from workbench.errors import BadInput
from workbench.speculation.drafters import aggressive, corpus, suffix
from workbench.speculation.drafters.corpus import SEPARATOR, SuffixIndex, Trigrams


def random_ids(seed: int, count: int = 400, vocabulary: int = 4) -> np.ndarray:
    draw = np.random.default_rng(seed)
    ids = draw.integers(vocabulary, size=count).astype(np.int32)
    ids[draw.integers(count, size=6)] = SEPARATOR
    ids[0] = SEPARATOR
    return ids


def occurrences(ids: list[int], ending: list[int]) -> list[int]:
    return [i + len(ending) for i in range(len(ids) - len(ending) + 1) if ids[i : i + len(ending)] == ending]


@pytest.mark.parametrize("seed", range(3))
def test_a_suffix_index_finds_the_longest_ending_and_all_its_places(seed):
    """Against a search by hand, on texts that occur often, seldom and never."""
    ids = random_ids(seed)
    index, plain, draw = SuffixIndex(ids), ids.tolist(), random.Random(seed)
    for _ in range(60):
        start = draw.randrange(len(plain) - 20)
        text = [t for t in plain[start : start + draw.randint(1, 20)] if t != SEPARATOR]
        text = [draw.randrange(5), *text, *[draw.randrange(5)] * draw.randint(0, 1)]
        length, places = index.find(text, 2, 16)
        expected = next((m for m in range(min(16, len(text)), 1, -1) if occurrences(plain, text[-m:])), 0)
        assert length == expected
        assert sorted(places.tolist()) == (occurrences(plain, text[-length:]) if length else [])
    runs = index.following(np.array([1, 399, 400]), 30)
    assert SEPARATOR not in itertools.chain(*runs) and runs[2] == []


def test_the_longest_match_in_the_text_itself():
    draw = random.Random(1)
    for _ in range(100):
        text = [draw.randrange(3) for _ in range(draw.randint(2, 40))]
        length, ends = suffix.longest_match(text, 8)
        expected = next((m for m in range(min(8, len(text) - 1), 0, -1) if occurrences(text[:-1], text[-m:])), 0)
        assert (length, ends) == (expected, occurrences(text[:-1], text[-expected:]) if expected else [])


def test_trigram_weights_are_the_counts(tmp_path):
    ids = random_ids(5)
    table, plain = Trigrams(ids, width=2), ids.tolist()
    for a, b in itertools.product(range(5), repeat=2):
        after = [
            plain[i + 2] for i in range(len(plain) - 2) if plain[i : i + 2] == [a, b] and plain[i + 2] != SEPARATOR
        ]
        expected = sorted(Counter(after).items(), key=lambda entry: (-entry[1], entry[0]))[:2]
        found = table.get(a, b)
        if not expected:
            assert found is None
            continue
        assert found[0] == [token for token, _ in expected]
        assert found[1] == pytest.approx([count / (len(after) + 1) for _, count in expected])


def test_a_corpus_is_read_once_without_what_is_hidden_or_no_text(lm, tmp_path):
    (tmp_path / "a.txt").write_text("def first(): pass\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.py").write_text("class Second: pass\n")
    (tmp_path / ".hidden").write_text("secret")
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.txt").write_text("\n")
    ids = corpus.corpus_ids(str(tmp_path), lm.tokenizer, 1)
    parts = np.split(ids, np.flatnonzero(ids == SEPARATOR)[1:])
    texts = [lm.tokenizer.decode(part[1:].tolist()) for part in parts]
    assert texts == ["def first(): pass\n", "class Second: pass\n"]
    assert corpus.corpus_ids(str(tmp_path), lm.tokenizer, 1) is ids
    for drafter in (wb.SuffixRetrieval, wb.ADED):
        for bad, reason in ((str(tmp_path / "no"), "no file"), (str(tmp_path / "empty.txt"), "no UTF-8 text")):
            with pytest.raises(BadInput, match=reason) as caught:
                wb.decode(lm, "x", wb.Speculative(drafter=drafter(corpus=bad)), max_new_tokens=1)
            assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="lies above"):
        wb.SuffixRetrieval(shortest=4, longest=3)
    with pytest.raises(BadInput, match="no tokenizer"):
        corpus.corpus_ids(str(tmp_path), None, 1)


@pytest.mark.parametrize("drafter", [wb.SuffixRetrieval, wb.ADED], ids=["suffix", "aded"])
def test_a_corpus_that_holds_the_answer_drafts_it(drafter, lm, held_out, tmp_path):
    plain = wb.decode(lm, held_out[6][-500:], max_new_tokens=40, temperature=0.8, seed=3)
    (tmp_path / "answer.txt").write_text(held_out[6][-40:] + plain.text)
    settings = dict(max_new_tokens=40, temperature=0.8, seed=3)
    more = wb.decode(lm, held_out[6][-500:], wb.Speculative(drafter=drafter(corpus=str(tmp_path))), **settings)
    less = wb.decode(lm, held_out[6][-500:], wb.Speculative(drafter=drafter()), **settings)
    assert more.token_ids == less.token_ids == plain.token_ids
    assert more.rounds["accepted"].sum() > 1.3 * less.rounds["accepted"].sum()
    again = wb.decode(lm, held_out[6][-500:], wb.Speculative(drafter=wb.SuffixRetrieval(longest=2)), **settings)
    assert again.token_ids == plain.token_ids


def test_paths_are_counted():
    draw = random.Random(2)
    runs = [[draw.randrange(3) for _ in range(draw.randint(0, 5))] for _ in range(30)]
    paths = suffix.paths_by_count(runs, 12)
    shared = Counter(tuple(run[:m]) for run in runs for m in range(1, len(run) + 1))
    assert [shared[tuple(path)] for path in paths] == sorted(shared.values(), reverse=True)[:12]
    chain = suffix.paths_by_count(runs, 12, branches=False)
    assert all(after[:-1] == before for before, after in itertools.pairwise(chain))
    with_most = {tuple(p): shared[tuple(p)] for p in chain}
    for path, count in with_most.items():
        assert count == max(shared[(*path[:-1], t)] for t in range(3))


@pytest.mark.parametrize("module", [aggressive, suffix], ids=lambda module: module.__name__.rpartition(".")[2])
def test_examples_in_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0
