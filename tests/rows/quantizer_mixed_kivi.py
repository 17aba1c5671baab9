"""Two widths, in short intervals."""

SETTINGS = {"bits": 8, "low_bits": 2, "share": 0.5, "interval": 64, "residual": 0}
