import dataclasses

from bench import conversion, markdown
from model.config import PRESETS

CONFIG = dataclasses.replace(PRESETS["bench"], num_layers=1, ffn_size=64, vocab_size=256)


def test_both_conversions_are_measured_and_removed(tmp_path):
    report = conversion.measure(tmp_path, CONFIG)
    document = tmp_path / "document.md"
    document.write_text("<!-- conversion -->\n<!-- /conversion -->\n")
    markdown.replace(document, "conversion", report.partition("\n\n")[2])
    header, *rows = markdown.rows(document, "conversion")
    assert [row[0] for row in rows] == ["int8", "int4"]
    for row in rows:
        found = dict(zip(header, row, strict=True))
        assert float(found["peak memory"].removesuffix(" GB")) > 0
        assert float(found["in matrices"]) > 1
    assert not (tmp_path / "store").exists()


def test_a_disk_without_room_is_refused_before_anything_is_written():
    config = dataclasses.replace(conversion.GROK_1, num_layers=2)
    assert conversion.refusal(config, int(27e9)) is None
    assert conversion.refusal(config, int(25e9)) == (
        "the model and a store of it take 27 GB, and 25 are free"
    )
