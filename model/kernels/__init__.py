"""Fast paths, each beside the plain form that defines it."""
