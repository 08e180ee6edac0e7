"""The image and the template: what can be known of them without a Docker engine."""

import argparse
import importlib.metadata as metadata_of
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import pytest

from pipeline.commands import generate
from pipeline.dataflow.image import build_arguments
from pipeline.dataflow.profiles import IMAGE_PYTHON, PROFILES
from pipeline.dataflow.template import command, metadata, parameters

ROOT = pathlib.Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def test_the_metadata_in_the_repository_is_that_of_the_arguments():
    written = (ROOT / "deploy" / "metadata.json").read_text()
    assert written == metadata(), "run: python -m pipeline.dataflow.template"


def test_parameters_are_described_as_the_template_service_wants_them():
    described = json.loads(metadata())["parameters"]
    names = [parameter["name"] for parameter in described]
    assert len(set(names)) == len(names)
    assert {"checkpoint", "input", "output", "machine", "bucket", "temperature"} <= set(names)
    assert {p["name"] for p in described if not p["isOptional"]} == {
        "checkpoint",
        "input",
        "output",
        "machine",
        "sdk_container_image",
    }
    for parameter in described:
        assert set(parameter) <= {"name", "label", "helpText", "isOptional", "regexes"}
        assert parameter["label"]
        assert parameter["helpText"]
        assert all(re.compile(regex) for regex in parameter.get("regexes", []))


def test_what_the_launcher_writes_is_what_the_command_reads():
    launched = [
        "--checkpoint=gs://b/ckpt",
        "--input=gs://b/in/*.parquet",
        "--output=gs://b/out",
        "--ignore-eos=true",
        "--overwrite=false",
        "--skip-special-tokens=false",
        "--stop-token-ids=5,7",
        "--stop=a\nb",
        "--columns=prompt=question,custom_id=id",
        "--runner=DataflowRunner",
        "--project=p",
    ]
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    line = command(launched)
    assert line[0] == "generate"
    given, others = parser.parse_known_args(line[1:])
    assert others == ["--runner=DataflowRunner", "--project=p"]
    assert given.ignore_eos is True
    assert given.overwrite is False
    assert given.skip_special_tokens is False
    assert given.stop_token_ids == [5, 7]
    assert given.stop == ["a\nb"]
    assert generate.options_of(given).columns == {"prompt": "question", "custom_id": "id"}


def test_every_parameter_is_an_argument_of_the_command():
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    ours = {flag.removeprefix("--") for a in parser._actions for flag in a.option_strings}
    beams = {
        "sdk_container_image",
        "max_num_workers",
        "experiments",
        "dataflow_service_options",
    }
    assert {parameter["name"] for parameter in parameters()} <= ours | beams


@pytest.mark.parametrize("name", PROFILES)
def test_an_image_gets_its_machine_s_variables(name):
    arguments = build_arguments(PROFILES[name])
    declared = set(re.findall(r"^ARG (\w+)", DOCKERFILE, flags=re.MULTILINE))
    for argument in arguments:
        assert argument.removeprefix("--build-arg=").partition("=")[0] in declared
    assert f"--build-arg=ACCELERATOR={PROFILES[name].image}" in arguments
    fixed = {k: v for k, v in PROFILES[name].environment.items() if f"ARG {k}" not in DOCKERFILE}
    for key, value in fixed.items():
        assert f"{key}={value}" in DOCKERFILE


def test_everything_that_is_copied_is_there_and_reaches_the_engine():
    # What a build sees: all that .dockerignore takes back from its first line, which is `*`.
    everything, *taken = (ROOT / ".dockerignore").read_text().split()
    assert everything == "*"
    sent = {line.removeprefix("!") for line in taken if line.startswith("!")}
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE):
        for kind in ("tpu", "gpu"):
            for path in source.replace("${ACCELERATOR}", kind).split():
                assert (ROOT / path).exists(), path
                assert path.split("/")[0] in sent, path
    assert os.access(ROOT / "deploy" / "entrypoint.sh", os.X_OK)


BOOT = """#!/bin/sh
echo "uid $(id -u), group $(id -g), groups $(id -G)"
for argument in "$@"; do echo "got $argument"; done
touch "$FOLDER/staged" && echo wrote
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, setpriv")
@pytest.mark.parametrize("form", [["--semi_persist_dir=@"], ["--semi_persist_dir", "@"]])
def test_the_worker_starts_without_root_s_rights_in_a_folder_of_its_own(form):
    # Not pytest's own folder, which nobody else may enter.
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        boot, script = (pathlib.Path(place, name) for name in ("boot", "entrypoint.sh"))
        boot.write_text(BOOT)
        text = (ROOT / "deploy" / "entrypoint.sh").read_text()
        # The image's user is not on this machine; another that has no rights is.
        text = text.replace("chown worker", "chown 65534").replace(
            "--init-groups", "--clear-groups"
        )
        text = text.replace("=worker", "=65534").replace("/opt/apache/beam/boot", str(boot))
        script.write_text(text)
        for path in (boot, script):
            path.chmod(0o755)
        folder = pathlib.Path(place, "semi persistent")
        arguments = ["--id=1", *(part.replace("@", str(folder)) for part in form)]
        ran = subprocess.run(
            [script, *arguments],
            env={**os.environ, "FOLDER": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        who, *got, wrote = ran.stdout.splitlines()
        assert who == "uid 65534, group 65534, groups 65534"
        assert got == [f"got {argument}" for argument in arguments]
        assert wrote == "wrote"
        assert (folder / "staged").stat().st_uid == 65534


def test_the_linter_finds_nothing():
    linter = shutil.which("hadolint") or shutil.which(
        "hadolint", path=pathlib.Path(sys.executable).parent
    )
    if linter is None:
        pytest.skip("hadolint is not installed")
    ran = subprocess.run(
        [linter, ROOT / "deploy" / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "")


def test_everything_that_the_image_stands_on_is_named_by_version():
    versions = dict(re.findall(r"^ARG (\w+_VERSION)=(\S+)$", DOCKERFILE, flags=re.MULTILINE))
    images = re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)
    assert len(images) == 3
    for image in images:
        tag = re.sub(r"\$\{(\w+)\}", lambda found: versions[found[1]], image).partition(":")[2]
        assert re.match(r"\d", tag), image
    beam = metadata_of.version("apache-beam")
    assert versions["BEAM_VERSION"] == beam, "the image's boot program is not the locked Beam's"
    python = ".".join(map(str, IMAGE_PYTHON))
    assert any(image.startswith(f"python:{python}.") for image in images)
    assert any(f"beam_python{python}_sdk" in image for image in images)
    assert any(f"python{python.replace('.', '')}-template-launcher" in image for image in images)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "module"), [("tpu", "libtpu"), ("gpu", "jax_cuda13_plugin")])
def test_the_image_s_install_steps_work_in_a_clean_place(tmp_path, kind, module):
    """The Dockerfile's own COPY and RUN lines, in an empty folder and a new environment."""
    work = tmp_path / "opt"
    work.mkdir()
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    body = DOCKERFILE.partition("WORKDIR")[2].partition("COPY --from")[0]
    for line in body.replace("${ACCELERATOR}", kind).splitlines():
        if line.startswith("COPY "):
            *sources, target = line.split()[1:]
            for source in sources:
                folder = target.endswith("/")
                place = work / target / pathlib.Path(source).name if folder else work / target
                place.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, place)
        elif line.startswith("RUN pip "):
            arguments = line.removeprefix("RUN pip ").partition(" && ")[0].split()
            subprocess.run([python, "-m", "pip", "--quiet", *arguments], cwd=work, check=True)
    check = (
        "import pipeline.handler, model.engine.engine, gcsfs, s3fs, importlib.util as u\n"
        f"assert u.find_spec('{module}')\n"
        "print(pipeline.__file__)"
    )
    ran = subprocess.run(
        [python, "-c", check],
        cwd=tmp_path,
        env={"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.startswith(str(tmp_path / "env"))
