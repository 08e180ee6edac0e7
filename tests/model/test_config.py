import dataclasses
import json
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from model.config import GROK_1, PRESETS, Grok1Config
from model.params import declare, tensors
from schemas.error import SetupError

KEYS = [field.name for field in dataclasses.fields(Grok1Config)] + ["widening_factor"]
WILD = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


def test_grok_1_has_the_published_size():
    assert round(GROK_1.num_params / 1e9, 1) == 315.7
    assert GROK_1.active_params / 1e9 == pytest.approx(83.75, abs=0.01)
    assert GROK_1.num_params == sum(math.prod(t.param.shape) for t in tensors(GROK_1))
    assert len(tensors(GROK_1)) == 770


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS.keys())
def test_a_config_survives_its_file(config):
    assert Grok1Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(("emb_size", "size"), [(6144, 32768), (512, 2736), (32, 176)])
def test_the_width_of_experts_follows_from_widening(emb_size, size):
    values = json.loads(PRESETS["tiny"].to_json())
    del values["ffn_size"]
    values.update(emb_size=emb_size, widening_factor=8)
    assert Grok1Config.from_mapping(values).ffn_size == size


@given(st.dictionaries(st.sampled_from(KEYS), WILD), st.sets(st.sampled_from(KEYS)))
def test_a_wild_config_is_refused_in_one_sentence(changes, dropped):
    values = {**json.loads(PRESETS["tiny"].to_json()), **changes}
    values = {key: value for key, value in values.items() if key not in dropped}
    try:
        config = Grok1Config.from_json(json.dumps(values))
    except SetupError as error:
        assert str(error).startswith("config: ")
        assert "\n" not in str(error)
    else:
        assert declare(config)


@pytest.mark.parametrize(
    "text", ["", "[]", "nan", '{"vocab_size": 1' + "0" * 5000 + "}", "[" * 10**5]
)
def test_what_is_no_config_is_refused(text):
    with pytest.raises(SetupError):
        Grok1Config.from_json(text)
