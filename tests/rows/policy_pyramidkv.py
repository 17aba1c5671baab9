"""A budget that drops several times in a hundred tokens."""

SETTINGS = {"budget": 40, "window": 32, "kernel": 3}
