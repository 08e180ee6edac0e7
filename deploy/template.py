"""What a Flex Template's launcher runs: `grok1 generate` with the template's parameters."""

import os
import sys

# The launcher's machine has none of the accelerators that the image asks of a worker.
os.environ["JAX_PLATFORMS"] = "cpu"

from pipeline.cli import main
from pipeline.dataflow.template import command

if __name__ == "__main__":
    sys.exit(main(command(sys.argv[1:])))
