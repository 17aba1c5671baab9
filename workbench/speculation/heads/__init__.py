"""Trained parts of drafters, shapes and verifiers: modules over the target's hidden states, and their weight files."""
