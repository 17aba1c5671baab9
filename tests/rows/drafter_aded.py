"""Its trees come from counts."""

GIVES = {"branches"}
