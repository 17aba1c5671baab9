"""The engine: models behind one protocol, their next-token laws, and the numbers every decoder logs."""
