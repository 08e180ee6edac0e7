"""Measurements: the engine alone, against peers, and against the machine's own limit."""
