"""The spine, from easy to hard: chains, a stop, trees, rejection, copies."""

import workbench as wb
from tests.table import Row, speculative

TREE = wb.FixedTree((2, 2, 1))

ROWS = {
    "": Row(lambda draft: speculative(draft), "exact", "seeded"),
    "confidence": Row(lambda draft: speculative(draft, shape=wb.ConfidenceStop(5, 0.5)), "exact", "seeded"),
    "tree": Row(lambda draft: speculative(draft, shape=TREE), "exact", "seeded"),
    "rejection": Row(lambda draft: speculative(draft, verifier=wb.Rejection()), "exact", "distribution"),
    "rejection-tree": Row(
        lambda draft: speculative(draft, shape=TREE, verifier=wb.Rejection()), "exact", "distribution"
    ),
    "greedy": Row(lambda draft: speculative(draft, verifier=wb.Greedy()), "exact", None),
    "copyspec": Row(lambda draft: wb.Speculative(drafter=wb.CopySpec(ngram=2)), "exact", "seeded"),
}
