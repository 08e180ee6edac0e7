"""Grok-1 in JAX, and the engine that serves it. Knows nothing of Beam."""
