"""A budget that drops several times in a hundred tokens."""

SETTINGS = {"sinks": 4, "window": 36}
