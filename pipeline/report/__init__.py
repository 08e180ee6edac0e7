"""What a run came to: for the terminal, and as one HTML file."""
