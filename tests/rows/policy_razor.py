"""One head of each layer keeps all, the other a short window."""

SETTINGS = {"retrieval": "0.1 1.0", "sinks": 4, "window": 40}
