import importlib.util
import os
import pathlib

import pytest

import __main__
from tests.model.ports import HPCAI, KEYFAN, port_arrays, port_values, write_port

_PORTS = {"hpcai": HPCAI, "keyfan": KEYFAN}
_ROOT = pathlib.Path(__file__).parents[2]

# Where only what model/ needs is installed, as on a GPU machine, what asks for more is left out.
collect_ignore = [
    path
    for path, package in (
        ("engine/test_constrained.py", "jsonschema"),
        ("test_constraint.py", "jsonschema"),
        ("test_lm_eval.py", "pyarrow"),
    )
    if importlib.util.find_spec(package) is None
]


@pytest.fixture(scope="session")
def released_tokenizer_dir() -> pathlib.Path:
    """The folder of the tokenizer published with Grok-1, which is not shipped: 2 MB.

    ``GROK1_TOKENIZER`` names its ``grok-1.model``, with ``grok-1-cases.json`` beside it; else a
    folder ``tokenizer`` near the repository is looked for.
    """
    given = os.environ.get("GROK1_TOKENIZER")
    near = _ROOT.parent.glob("*/tokenizer/grok-1.model")
    for path in [pathlib.Path(given)] if given else near:
        if path.with_name("grok-1-cases.json").is_file():
            return path.parent
    pytest.skip("the released tokenizer is not at hand")


@pytest.fixture(scope="session", params=_PORTS)
def port(request, tiny, tmp_path_factory) -> str:
    """The golden checkpoint as each port has it."""
    folder = tmp_path_factory.mktemp(request.param)
    return write_port(folder, port_arrays(tiny, _PORTS[request.param]), port_values(tiny))


@pytest.fixture
def quantized_class(monkeypatch):
    """A stand-in for the class of the release's code, where its pickles look for it."""
    cls = type("QuantizedWeight8bit", (), {"__module__": "__main__"})
    monkeypatch.setattr(__main__, "QuantizedWeight8bit", cls, raising=False)
    return cls
