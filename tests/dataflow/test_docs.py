"""docs/dataflow.md, run from top to bottom as a newcomer would.

The shell, make, grok1, Beam and a GCS server are real. ``gcloud``, ``docker``, ``hf`` and ``curl``
are stand-ins that note what they were told, and copy or download what is asked for from here; the
Dataflow service is ``service.running``.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import fsspec
import pytest
from apache_beam.internal.gcp import auth

from pipeline.cli import OK, main
from pipeline.dataflow.template import command, parameters
from tests.dataflow import service

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "dataflow.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)

STAND_IN = """\
#!{python}
import json, os, pathlib, shutil, sys
name, told = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps([name, *told]) + "\\n")
if name == "hf":
    assert told[:2] == ["download", "xai-org/grok-1"], told
    shutil.copytree({release!r} + "/ckpt-0", told[told.index("--local-dir") + 1] + "/ckpt-0")
    shutil.copy({release!r} + "/config.json", told[told.index("--local-dir") + 1])
elif name == "curl":
    shutil.copy({release!r} + "/tokenizer.model", told[told.index("--output") + 1])
elif told[:2] == ["storage", "cp"]:
    import fsspec
    for path in told[2:-1]:
        fsspec.filesystem("gs").put(path, told[-1])
elif told[:3] == ["config", "get-value", "account"]:
    print("somebody@example.com")
"""

GROK1 = """\
#!{python}
import sys
from apache_beam.internal.gcp import auth
from pipeline.cli import main
if __name__ == "__main__":
    auth._Credentials._credentials_init = True  # or Beam looks for some for 25 seconds
    offline = ["--no_auth", "--dataflow_endpoint={endpoint}"]
    sys.exit(main(sys.argv[1:] + offline * ("--runner=DataflowRunner" in sys.argv)))
"""

MAKE = """\
#!/bin/sh
exec {make} --silent -C {root} -o setup -o setup-dev BIN={bin} "$@"
"""


@pytest.fixture
def desk(tmp_path, talking):
    """A folder to work in, whose commands stand in for what is not here; its log of them."""
    log, desk = tmp_path / "log", tmp_path / "desk"
    for folder in (desk / ".venv" / "bin", desk / "bin", desk / "hf-env" / "bin"):
        folder.mkdir(parents=True)
    made = STAND_IN.format(python=sys.executable, log=str(log), release=str(talking))
    places = [desk / "bin" / name for name in ("gcloud", "docker", "curl", "python3")]
    for path in [*places, desk / "hf-env" / "bin" / "hf", desk / "hf-env" / "bin" / "pip"]:
        path.write_text(made)
        path.chmod(0o755)
    make = desk / "bin" / "make"
    make.write_text(MAKE.format(make=shutil.which("make"), root=ROOT, bin=desk / ".venv" / "bin"))
    make.chmod(0o755)
    python = desk / ".venv" / "bin" / "python"
    # A link would lead to an interpreter that does not find its packages.
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (desk / "examples").symlink_to(ROOT / "examples")
    return desk, log


def runnable(bucket: str) -> str:
    """The page's commands as one script, for another bucket."""
    script, count = re.subn(r"BUCKET=gs://\S+", f"BUCKET={bucket}", "\n".join(BLOCKS))
    assert count == 1
    # The small model's whole context has 256.
    return re.sub(r"max-tokens([ =])256", r"max-tokens\g<1>64", script)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_page_runs_from_top_to_bottom(desk, world, tmp_path, monkeypatch):
    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    place, log = desk
    bucket = f"{world.bucket}/page"
    with service.running(tmp_path) as (dataflow, endpoint):
        dataflow._work = lambda: None  # the workers never come
        grok1 = place / ".venv" / "bin" / "grok1"
        grok1.write_text(GROK1.format(python=sys.executable, endpoint=endpoint))
        grok1.chmod(0o755)
        script = runnable(bucket).replace("grok1 status", "grok1 status --json")
        environment = {
            **os.environ,
            "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        # What must not succeed, as the page says: the job has not ended, two prompts are broken.
        for name, code in (("status", 1), ("plan", 3)):
            line = rf"^(\.venv/bin/grok1 {name} .*)$"
            script, count = re.subn(line, rf"\1 || test $? = {code}", script, flags=re.M)
            assert count == 1
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert "what would run on Dataflow" in ran.stdout
    assert '"job_state": "running"' in ran.stdout
    told = [json.loads(line) for line in log.read_text().splitlines()]
    image = "us-east5-docker.pkg.dev/your-project/grok1/worker:1"
    _check_google(told, image)
    (job,) = dataflow.jobs
    (pool,) = job["environment"]["workerPools"]
    assert {i["containerImage"] for i in pool["sdkHarnessContainerImages"]} == {image}
    account = "grok1-worker@your-project.iam.gserviceaccount.com"
    assert job["environment"]["serviceAccountEmail"] == account
    (launch,) = (line for line in told if line[1:4] == ["dataflow", "flex-template", "run"])
    assert f"--service-account-email={account}" in launch
    _check_template(launch, image)


def _check_google(told: list[list[str]], image: str) -> None:
    """What Google's commands were told fits together."""
    lines = [" ".join(line) for line in told]
    (enabled,) = (line for line in lines if line.startswith("gcloud services enable"))
    for api in ("dataflow", "compute", "storage", "artifactregistry"):
        assert f"{api}.googleapis.com" in enabled
    granted = set(re.findall(r"--role=(\S+)", " ".join(lines)))
    assert {
        "roles/dataflow.worker",
        "roles/storage.objectAdmin",
        "roles/artifactregistry.reader",
        "roles/iam.serviceAccountUser",
    } == granted
    order = [
        f"gcloud auth configure-docker {image.partition('/')[0]}",
        "docker build",
        f"docker push {image}",
        "gcloud dataflow flex-template build",
    ]
    found = [next(i for i, line in enumerate(lines) if line.startswith(want)) for want in order]
    assert found == sorted(found)
    build = next(line for line in told if line[:2] == ["docker", "build"])
    assert build[build.index("--tag") + 1] == image
    assert f"--image={image}" in " ".join(lines)
    assert not any("your-project-grok1" in line for line in lines)


def _check_template(launch: list[str], image: str) -> None:
    """The launcher's command for the page's parameters makes a job's template."""
    (text,) = (a.partition("=")[2] for a in launch if a.startswith("--parameters="))
    given = dict(pair.partition("=")[::2] for pair in text.split(","))
    described = {p["name"]: p for p in parameters()}
    assert set(given) <= set(described)
    assert given["max-tokens"] == "64"
    assert {name for name, p in described.items() if not p["isOptional"]} <= set(given)
    assert given["sdk_container_image"] == image
    launched = [f"--{name}={value}" for name, value in given.items()]
    google_s = ["--runner=DataflowRunner", "--project=your-project", "--region=us-east5"]
    template = f"--template_location={given['bucket']}/job.json"
    offline = ["--no_auth", "--dataflow_endpoint=http://localhost:9"]
    assert main(command([*launched, *google_s, template, *offline])) == OK
    assert fsspec.filesystem("gs").exists(f"{given['bucket']}/job.json")


def test_the_page_s_commands_are_the_command_s_own():
    """Each option of a grok1 or make line is known, which running the page shows late."""
    from pipeline.cli import make_parser

    known = set()
    for action in make_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            for parser in action.choices.values():
                known |= set(parser._option_string_actions)
    lines = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
    ours = [line for line in lines if line.startswith((".venv/bin/grok1", "export JOB=", "make d"))]
    assert len(ours) >= 6
    beams = {
        "--project",
        "--region",
        "--sdk_container_image",
        "--service_account_email",
        "--max_num_workers",
        "--dataflow_service_options",
    }
    used = {word.partition("=")[0] for line in ours for word in re.findall(r"--[\w-]+", line)}
    assert used <= known | beams
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = {line.split()[1] for line in lines if line.startswith("make ")}
    assert {"setup-dev", "image", "template", "run-template", "dataflow"} == made
    assert made <= targets


def test_the_profiles_are_those_of_the_table():
    from pipeline.dataflow.profiles import PROFILES

    rows = re.findall(r"^\| `([\w-]+)` \| `([\w-]+)` \| .* \| (yes|no) \| (yes|no) \|$", PAGE, re.M)
    assert {name: kind for name, kind, *_ in rows} == {
        name: profile.machine_type for name, profile in PROFILES.items()
    }
    from model.config import GROK_1
    from model.room import Question, room_for

    for name, _, *fits in rows:
        for weights, says in zip(("int8", "int4"), fits, strict=True):
            room = room_for(Question(machine=name, config=GROK_1, weights=weights))
            assert (room.max_slots > 0) == (says == "yes"), (name, weights)


def test_the_refusal_is_the_one_that_is_shown():
    from model.config import GROK_1
    from model.room import Question
    from pipeline.dataflow.checks import check_fits
    from pipeline.dataflow.profiles import PROFILES
    from schemas.error import SetupError

    with pytest.raises(SetupError) as refused:
        check_fits(PROFILES["v6e-8"], Question(machine="v6e-8", config=GROK_1, context=8192))
    assert f"grok1: {refused.value}\n" in PAGE
