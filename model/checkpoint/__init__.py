"""Reading and writing checkpoints: the release's own files and other layouts."""
