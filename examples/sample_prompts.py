"""Writes a few prompts as Parquet: ``python examples/sample_prompts.py FILE``.

Two of them are broken on purpose, to show what becomes of such rows: they come out as errors, and
the others are unharmed.
"""

import sys

import pyarrow as pa
import pyarrow.parquet as pq

PROMPTS = [
    "def fibonacci(n):\n",
    "import os\nimport sys\n\n",
    "class Queue:\n    def __init__(self):\n",
    "def read_lines(path):\n    with open(path) as file:\n",
    "for i in range(10):\n",
    "try:\n    value = int(text)\nexcept ",
    "# Return the largest of three numbers.\n",
    '"""Parse command line options.',
    None,
    "def main():\n    parser = argparse.ArgumentParser(",
    "raise ValueError(",
    "A dictionary maps ",
]
TEMPERATURES = [0.0, 0.0, 0.8, 0.0, 0.8, 0.0, 0.8, 0.0, 0.0, 0.0, -1.0, 0.8]


def main(path: str) -> None:
    """Writes the prompts to a file."""
    table = pa.table(
        {
            "custom_id": [f"sample-{i}" for i in range(len(PROMPTS))],
            "prompt": pa.array(PROMPTS, pa.string()),
            "temperature": TEMPERATURES,
        }
    )
    pq.write_table(table, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
