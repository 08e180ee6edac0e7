"""A machine that submits jobs has no accelerator and perhaps no JAX; help must not take seconds."""

import subprocess
import sys

import pytest

HEAVY = {"jax", "jaxlib", "apache_beam", "pyarrow", "numpy", "fsspec"}


def imported_by(code: str, *arguments: str) -> set[str]:
    """The packages that a fresh interpreter has imported after running some code."""
    code += "\nimport sys\nprint('\\nIMPORTED', *{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rpartition("IMPORTED")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"], []])
def test_help_imports_nothing_heavy(arguments):
    code = f"from pipeline.cli import main\ntry: main({arguments})\nexcept SystemExit: pass"
    assert not imported_by(code) & HEAVY


def test_the_package_imports_nothing_heavy():
    assert not imported_by("import pipeline, model, schemas; dir(pipeline)") & HEAVY


def test_a_set_up_is_checked_without_beam_and_jax(prepare):
    job = prepare({"prompt": ["a"]})
    code = "\n".join(
        [
            "import sys",
            "from pipeline import GenerateOptions, prepare_job",
            "checkpoint, source, output = sys.argv[1:]",
            "prepare_job(GenerateOptions(checkpoint=checkpoint, input=source, output=output))",
        ]
    )
    arguments = (job.options.checkpoint, job.options.input[0], job.options.output + "2")
    assert not imported_by(code, *arguments) & {"jax", "jaxlib", "apache_beam"}


def test_a_pipeline_is_built_without_jax(prepare):
    job = prepare({"prompt": ["a"]})
    code = "\n".join(
        [
            "import sys",
            "from pipeline import GenerateOptions, build_pipeline",
            "checkpoint, source, output = sys.argv[1:]",
            "options = GenerateOptions(checkpoint=checkpoint, input=source, output=output)",
            "build_pipeline(options).to_runner_api()",
        ]
    )
    arguments = (job.options.checkpoint, job.options.input[0], job.options.output + "2")
    found = imported_by(code, *arguments)
    assert "apache_beam" in found
    assert not found & {"jax", "jaxlib", "jinja2"}


def test_the_model_and_the_contracts_know_nothing_of_beam():
    code = (
        "import importlib, pkgutil, model, schemas\n"
        "for package in (model, schemas):\n"
        "    for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if found.name not in ('model.lm_eval', 'model.generation'):  # need an extra\n"
        "            importlib.import_module(found.name)\n"
    )
    assert "apache_beam" not in imported_by(code)


def test_the_scheduler_and_the_contracts_know_nothing_of_jax():
    code = (
        "import model.engine.scheduler, model.engine.request, model.tokenizer\n"
        "import schemas.completion, schemas.prompt, schemas.sampling, schemas.error\n"
    )
    assert not imported_by(code) & {"jax", "jaxlib"}
