"""Its acceptance head reads the draft."""

NEEDS = ("distributions", "hidden")
