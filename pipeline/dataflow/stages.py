"""Which steps of a pipeline run as one stage, as Beam's own fuser finds them."""

from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import translations

_PHASES = (
    translations.expand_sdf,
    translations.expand_gbk,
    translations.greedily_fuse,
    translations.sort_stages,
)

_OF_RUNNER = "ref_PCollection"
"""Begins the names of what only hands elements from one stage to the next."""


def fused_stages(graph: beam_runner_api_pb2.Pipeline) -> list[list[beam_runner_api_pb2.PTransform]]:
    """The steps of each stage, in order. Between two of a stage nothing is stored or sent.

    Args:
      graph: the pipeline as it is sent.
    """
    flatten = common_urns.primitives.FLATTEN.urn
    _, stages = translations.create_and_optimize_stages(
        graph, phases=_PHASES, known_runner_urns=frozenset([flatten])
    )
    return [list(stage.transforms) for stage in stages]


def readable(stage: list[beam_runner_api_pb2.PTransform]) -> list[str]:
    """Names of a stage's steps as the pipeline's author gave them, each once."""
    names = [step.unique_name for step in stage]
    named = ["/".join(name.split("/")[:2]) for name in names if not name.startswith(_OF_RUNNER)]
    return list(dict.fromkeys(named))
