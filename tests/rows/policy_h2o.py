"""A budget that drops several times in a hundred tokens."""

SETTINGS = {"budget": 44, "recent": 32}
