"""Which Dataflow job works on an output folder, and what the service says of it.

No Beam, so that asking is quick.
"""

import dataclasses
import json
import logging
import sys

from model.checkpoint import files
from pipeline.storage import Folder
from schemas.error import SetupError

SUBMISSION = "_dataflow.json"
"""In the output folder: which job works on it."""

_SECONDS = 20.0
"""That the service may take to answer."""

_ENDED = ("done", "failed", "cancelled", "updated", "drained", "stopped")


class Unknown(Exception):
    """A job's state cannot be told; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job that Dataflow has taken.

    Attributes:
      job_id: its id.
      project, region: where it is.
      endpoint: of the service, where it is not Google's own.
      no_auth: whether that is asked without credentials.
    """

    job_id: str
    project: str
    region: str
    endpoint: str | None = None
    no_auth: bool = False

    @property
    def url(self) -> str:
        """Its page in Google's console."""
        where = f"{self.region}/{self.job_id}?project={self.project}"
        return f"https://console.cloud.google.com/dataflow/jobs/{where}"

    @property
    def cancel(self) -> str:
        """The command that cancels it."""
        return (
            f"gcloud dataflow jobs cancel {self.job_id} --project={self.project} "
            f"--region={self.region}"
        )


def record(folder: Folder, sent: Submitted) -> None:
    """Notes the job in its output folder."""
    folder.replace(SUBMISSION, (json.dumps(dataclasses.asdict(sent)) + "\n").encode())


def submitted(folder: Folder) -> Submitted | None:
    """The job that was submitted for an output folder, if one was."""
    data = folder.read(SUBMISSION)
    return None if data is None else Submitted(**json.loads(data))


def is_live(state: str) -> bool:
    """Whether a job in this state still runs, or will."""
    return state not in _ENDED


def refuse_second(folder: Folder) -> None:
    """Refuses to take over an output folder that a submitted job still works on.

    Where nobody can tell, a sentence on stderr says so.

    Raises:
      SetupError: the job runs, or will.
    """
    sent = submitted(folder)
    if sent is None:
        return
    try:
        state = ask_state(sent)
    except Unknown as unknown:
        print(
            f"grok1: Dataflow job {sent.job_id} was submitted for this output before, and may "
            f"still run: {unknown}; see {sent.url}",
            file=sys.stderr,
        )
        return
    if is_live(state):
        shown = files.redact(folder.url)
        # Not its page: in an error what follows a URL's question mark is taken for a secret.
        raise SetupError(
            f"Dataflow job {sent.job_id} works on {shown} already ({state}); wait for it, see "
            f"grok1 status {shown}, or cancel it: {sent.cancel}"
        )


def ask_state(sent: Submitted) -> str:
    """The job's state, in the service's word: ``running``, ``done``, ``cancelled``, ….

    Raises:
      Unknown: the client is not installed, or the service does not answer.
    """
    try:
        import google.auth
        from google.api_core.client_options import ClientOptions
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import dataflow
    except ImportError:
        raise Unknown("Google's client is not installed here (make setup-dev)") from None
    endpoint = (sent.endpoint or "").rstrip("/")
    # As Beam does: a service on this machine speaks no gRPC.
    here = "localhost" in endpoint
    if not here:
        endpoint = endpoint.removeprefix("https://").removeprefix("http://")
    logging.getLogger("google.auth").setLevel(logging.ERROR)
    try:
        credentials = AnonymousCredentials() if sent.no_auth else google.auth.default()[0]
        client = dataflow.JobsV1Beta3Client(
            credentials=credentials,
            client_options=ClientOptions(api_endpoint=endpoint) if endpoint else None,
            transport="rest" if here else None,
        )
        request = dataflow.GetJobRequest(
            project_id=sent.project, job_id=sent.job_id, location=sent.region
        )
        job = client.get_job(request, timeout=_SECONDS, retry=None)
    except OSError:
        raise Unknown(f"Dataflow cannot be reached at {endpoint or 'its usual address'}") from None
    except Exception as error:  # no credentials, no such job, no right to see it: in many classes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Unknown(f"Dataflow does not say: {reason}") from None
    return job.current_state.name.removeprefix("JOB_STATE_").lower()
