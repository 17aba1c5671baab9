"""A model and copies."""

import workbench as wb

GIVES = {"confidence", "distributions", "branches", "hidden"}


def make(draft, heads):
    return wb.Fuse(wb.DraftModel(draft), wb.CopySpec(ngram=1))
