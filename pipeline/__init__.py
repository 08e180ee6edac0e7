"""The Beam pipeline around the engine. Importing it imports neither Beam nor JAX."""
