"""Three pages of the six that a text of two hundred tokens fills."""

SETTINGS = {"budget": 96}
