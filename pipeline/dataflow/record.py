"""Which Dataflow job works on an output folder. No Beam, so that asking is quick."""

import dataclasses
import json

from pipeline.storage import Folder

SUBMISSION = "_dataflow.json"
"""In the output folder: which job works on it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job that Dataflow has taken.

    Attributes:
      job_id: its id; None where the arguments only made a template or tried the submission.
      project, region: where it is.
    """

    job_id: str | None
    project: str
    region: str

    @property
    def url(self) -> str:
        """Its page in Google's console."""
        where = f"{self.region}/{self.job_id}?project={self.project}"
        return f"https://console.cloud.google.com/dataflow/jobs/{where}"


def record(folder: Folder, sent: Submitted) -> None:
    """Notes the job in its output folder."""
    folder.replace(SUBMISSION, (json.dumps(dataclasses.asdict(sent)) + "\n").encode())


def submitted(folder: Folder) -> Submitted | None:
    """The job that was submitted for an output folder, if one was."""
    data = folder.read(SUBMISSION)
    return None if data is None else Submitted(**json.loads(data))
