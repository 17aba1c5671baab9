"""Two chains."""

SETTINGS = {"count": 2, "length": 3}
NEEDS = ("distributions", "branches", "alone")
