"""Writes the beginnings of some Python code as Parquet: ``python examples/sample_prompts.py FILE``.

Two of them are broken on purpose, to show what becomes of such rows: they come out as errors, and
the others are unharmed.
"""

import argparse

import pyarrow as pa
import pyarrow.parquet as pq

PROMPTS = [
    "def read_lines(path):\n    with open(path) as file:\n",
    "def read_lines(path):\n",
    "class Error(Exception):\n",
    "try:\n    value = int(text)\nexcept ",
    "import os\nimport sys\n\n",
    "    def __repr__(self):\n        return ",
    "@property\n",
    "for name in names:\n",
    None,
    '"""Parse command line options.',
    "raise ValueError(",
    "def main():\n    parser = argparse.ArgumentParser(",
]
TEMPERATURES = [0.0, 0.3, 0.6, 0.6, 0.6, 0.6, 0.6, 0.3, 0.0, 0.6, -1.0, 0.6]


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    main(**vars(parser.parse_args()))
