"""What Beam itself finds wrong with its options, before anything is claimed."""

from collections.abc import Sequence

from apache_beam.options.pipeline_options import PipelineOptions, TestOptions
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator

from schemas.error import SetupError


class _Validator(PipelineOptionsValidator):
    """Beam's, which checks little where the service's address is one on this machine."""

    def is_service_runner(self) -> bool:
        return True

    def validate_endpoint_url(self, endpoint_url: str) -> bool:
        here = endpoint_url.startswith("http://localhost:")
        return here or super().validate_endpoint_url(endpoint_url)


def validate(arguments: Sequence[str]) -> None:
    """Refuses options that Beam would refuse when the pipeline is made, which is after the claim.

    Args:
      arguments: Beam's, complete.

    Raises:
      SetupError: Beam's sentences.
    """
    options = PipelineOptions(list(arguments))
    # Or Beam asks the bucket for its policies, which it does again when it submits.
    options.view_as(TestOptions).dry_run = True
    if errors := _Validator(options, runner=None).validate():
        raise SetupError("; ".join(" ".join(error.split()).rstrip(".") for error in errors))
