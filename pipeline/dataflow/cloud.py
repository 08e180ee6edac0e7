"""What Google's services say of an image and of reservations, before anything is sent. No Beam."""

import json
import logging
import os
import urllib.error
import urllib.request
from typing import Any

_SECONDS = 10.0
"""That a service may take to answer."""

_COMPUTE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"
"""The variable by which ``gcloud``, too, is told of another address."""

_MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class Unknown(Exception):
    """Nobody here can tell: no right to ask, no network, another kind of service."""


def image_exists(image: str, identified: bool = True) -> bool:
    """Whether a registry has an image.

    Args:
      image: as ``docker push`` takes it, with its registry.
      identified: whether this machine's credentials may be used.

    Raises:
      Unknown: the registry does not say.
    """
    host, _, path = image.partition("/")
    name, at, reference = path.partition("@")
    if not at:
        name, _, reference = path.partition(":")
    here = host.partition(":")[0] == "localhost"
    if not (here or host.endswith((".pkg.dev", "gcr.io"))):
        raise Unknown(f"{host} is none of Google's registries")
    url = f"http{'' if here else 's'}://{host}/v2/{name}/manifests/{reference or 'latest'}"
    try:
        _ask(url, token=_token(here, identified), accept=", ".join(_MANIFESTS), method="HEAD")
    except _Missing:
        return False
    return True


def reserved_hosts(project: str, region: str, machine_type: str, identified: bool = True) -> int:
    """How many hosts of a kind are reserved in a region and not in use.

    Args:
      project: whose reservations.
      region: a reservation is in one of its zones.
      machine_type: Compute Engine's name of the host.
      identified: whether this machine's credentials may be used.

    Raises:
      Unknown: Compute Engine does not say.
    """
    given = os.environ.get(_COMPUTE)
    base = (given or "https://compute.googleapis.com/compute/v1/").rstrip("/")
    token = _token(base.startswith("http://localhost"), identified)
    free, page = 0, ""
    while True:
        url = f"{base}/projects/{project}/aggregated/reservations?maxResults=500{page}"
        try:
            found = json.loads(_ask(url, token=token, accept="application/json"))
        except (_Missing, ValueError):
            raise Unknown(f"no reservations can be seen in project {project}") from None
        for zone, held in found.get("items", {}).items():
            if zone.removeprefix("zones/").rpartition("-")[0] == region:
                free += sum(_free(each, machine_type) for each in held.get("reservations", []))
        if not (following := found.get("nextPageToken")):
            return free
        page = f"&pageToken={following}"


def _free(reservation: dict[str, Any], machine_type: str) -> int:
    specific = reservation.get("specificReservation", {})
    if specific.get("instanceProperties", {}).get("machineType") != machine_type:
        return 0
    return int(specific.get("count", 0)) - int(specific.get("inUseCount", 0))


class _Missing(Exception):
    """Not found."""


def _ask(url: str, *, token: str | None, accept: str, method: str = "GET") -> bytes:
    headers = {"Accept": accept} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise _Missing from None
        raise Unknown(f"{error.code} {error.reason}") from None
    except OSError as error:
        raise Unknown(str(error)) from None


def _token(here: bool, identified: bool) -> str | None:
    if here:
        return None
    if not identified:
        raise Unknown("credentials are not to be used")
    try:
        import google.auth
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import Request
    except ImportError:
        raise Unknown("Google's client is not installed") from None
    logging.getLogger("google.auth").setLevel(logging.ERROR)
    try:
        credentials, _ = google.auth.default(["https://www.googleapis.com/auth/cloud-platform"])
        credentials.refresh(Request())
    except GoogleAuthError as error:
        raise Unknown(str(error)) from None
    return credentials.token
