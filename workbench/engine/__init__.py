"""The engine: models behind one protocol, their next-token distributions, and the numbers every decoder logs."""
