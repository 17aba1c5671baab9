"""Every method says where it is from and which method it is: readers compare by names."""

import inspect
import re

import pytest

from workbench.declare import get, names

FAMILIES = ("decoder", "drafter", "shape", "verifier", "policy", "quantizer", "reader", "scorer", "constraint")
MEMBERS = {name: get(family, name) for family in FAMILIES for name in names(family)}
OURS = {name: member for name, member in MEMBERS.items() if member.__module__.startswith("workbench.")}
PAPERS = {name: member for name, member in OURS.items() if re.search(r"Sources?:.*\"", member.__doc__, re.S)}


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_method_has_a_link(name):
    """The paper's title and its page on arXiv or OpenReview, or where the rule without a paper is told."""
    text = " ".join(OURS[name].__doc__.split())
    theirs = ("autoregressive", "beam", "heuristic", "log_probability", "prompt_lookup")  # rules of transformers
    if name in theirs or '"' not in text:
        assert "https://" in inspect.getsource(inspect.getmodule(OURS[name])), text
    else:
        page = r"https://(arxiv\.org/abs/\d{4}\.\d{5}|openreview\.net/forum\?id=\w+)"
        assert re.search(r"\"[^\"]{9,}\" \(" + page + "[;)]", text), text


def test_names_that_two_methods_share_say_which_one_they_are():
    assert len(PAPERS) > 25
    said = {name: " ".join(member.__doc__.split()) for name, member in OURS.items()}
    assert "This is Draft & Verify" in said["layer_skip"] and "`Kangaroo(weights=None)`" in said["layer_skip"]
    assert "This is Mirostat 2.0" in said["mirostat"] and "measured at temperature 0" in said["sequoia"]


@pytest.mark.parametrize(
    ("name", "departure"),
    [
        ("typical", "p and H are of the distribution sampled from"), ("judge", "In a tree the first draft"),
        ("input_guided", "generalised aggressive decoding"), ("recycling", "theirs: 80 nodes"),
        ("aded", "theirs: 24 to 64"), ("medusa", "theirs: 63 in four"),
        ("hydra", "embeddings of tokens are normalised"),
        ("eagle", "embedding and the layer's input are normalised"), ("eagle", "the extra branch alone"),
        ("kangaroo", "adds to the normalised state"),
        ("adaptive_confidence", "theirs: where `max_length` were drafted"),
        ("specdec", "drafts are longer than theirs"), ("pearl", "the clock leaves out"), ("mirostat", "on by default"),
    ],
)  # fmt: skip
def test_a_departure_from_the_paper_is_told(name, departure):
    assert departure in " ".join(MEMBERS[name].__doc__.split())
