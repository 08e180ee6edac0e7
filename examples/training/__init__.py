"""Trains the small model beside it: ``python -m examples.training``; see examples/README.md."""
