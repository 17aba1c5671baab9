"""A budget that drops and merges several times in a hundred tokens."""

SETTINGS = {"budget": 44, "recent": 32, "spread": 3}
