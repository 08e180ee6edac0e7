"""Completions inside a Beam pipeline of one's own: ``python examples/own_pipeline.py CKPT IN OUT``.

The transforms are those that ``grok1 generate`` is made of. What follows them gets the manifest,
once all parts are written and every row is accounted for.
"""

import argparse

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference

from pipeline import GenerateOptions, ReadPrompts, WriteCompletions, model_handler, prepare_job
from schemas.sampling import SamplingParams


def main(checkpoint: str, prompts: str, output: str) -> None:
    """Completes the prompts, then prints how it went."""
    options = GenerateOptions(
        checkpoint=checkpoint,
        input=(prompts,),
        output=output,
        sampling=SamplingParams(temperature=0.7, max_tokens=64),
    )
    job = prepare_job(options)  # what is wrong for all rows is found here
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        (
            pipeline
            | ReadPrompts(job)
            | RunInference(model_handler(job))
            | WriteCompletions(job)
            | beam.Map(lambda manifest: f"{manifest['succeeded']} of {manifest['rows_in']} rows")
            | beam.Map(print)
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("prompts")
    parser.add_argument("output")
    main(**vars(parser.parse_args()))
