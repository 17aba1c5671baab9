"""Its trees come from texts."""

SETTINGS = {"shortest": 1}
GIVES = {"branches"}
