"""A third of a text of two hundred tokens; ids end its sentences, as the models of the tests have no tokenizer."""

SETTINGS = {"budget": 80, "sinks": 8, "ends": (3, 7)}
