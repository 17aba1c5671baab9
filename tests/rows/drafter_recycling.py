"""Its trees come from a table."""

SETTINGS = {"width": 3}
GIVES = {"branches"}
