"""Other files than Parquet, in and out: JSON lines, CSV, OpenAI's batch files, datasets folders."""
