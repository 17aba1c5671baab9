"""It verifies independent chains alone."""

SHAPES = ("chains",)
REASON = "needs independent chains"
