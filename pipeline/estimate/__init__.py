"""What a job will read, write and cost, found out before a model is loaded."""
