"""The picture of a table, read off its SVG."""

import re

import pytest
from PIL import Image

from ldznet_core import InputError
from ldznet_core.evaluation.bars import LEFT, WIDTH, bars
from ldznet_core.evaluation.published import rows_of
from ldznet_core.imaging.figure import COLOURS


def row(method: str, **scores: float) -> dict:
    about = {"set": "AIGI", "method": method, "text": "", "refined": False, "seeds": 2, "samples": 9}
    return about | {name: {"mean": value, "std": 0.05} for name, value in scores.items()}


ROWS = [row("attention", miou=0.5, ap=0.25), row("noise", miou=1.0), *(row.as_dict() for row in rows_of("aigi"))]


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_a_panel_for_each_score_with_a_bar_a_method_and_a_line_for_each_published_one():
    svg = bars(ROWS).svg()
    words = texts(svg)
    assert [word for word in words if word.startswith("AIGI")] == ["AIGI: mIoU", "AIGI: AP"]
    assert "50.0 ± 5.0" in words and "LD-ZNet 74.1" in words and "SEEM 70.0" in words
    widths = [float(w) for w in re.findall(rf'width="([\d.]+)" height="16" fill="{COLOURS[0]}"', svg)]
    assert widths == [WIDTH / 2, WIDTH, WIDTH / 4]
    first = svg.split("AIGI: AP")[0]
    (line,) = re.findall(rf'points="([\d.]+),[\d.]+ \1[^"]*" fill="none" stroke="{COLOURS[1]}"', first)
    assert float(line) == pytest.approx(LEFT + 0.741 * WIDTH, abs=0.1)


def test_it_is_written_as_png_or_svg(tmp_path):
    for name in ("bars.png", "bars.SVG"):
        bars(ROWS).save(tmp_path / name)
    assert Image.open(tmp_path / "bars.png").format == "PNG"
    assert (tmp_path / "bars.SVG").read_text(encoding="utf-8").startswith("<svg")


def test_without_a_measured_row_there_is_nothing_to_draw():
    with pytest.raises(InputError, match="nothing to draw"):
        bars([row.as_dict() for row in rows_of("aigi")])
