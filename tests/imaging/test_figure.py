"""Figures: the same page as pixels and as SVG."""

from xml.etree import ElementTree

from PIL import Image

from ldznet_core.imaging.figure import Figure, heat


def page(tmp_path):
    figure = Figure(60, 40)
    figure.rectangle(10, 10, 20, 10, fill="#0072b2")
    figure.rectangle(40, 10, 10, 20, outline="#d55e00")
    figure.line([(0, 35), (60, 35)], "#009e73")
    figure.text(2, 5, "a < b & c", 8)
    figure.write(tmp_path / "f.png", tmp_path / "f.svg")
    return Image.open(tmp_path / "f.png"), ElementTree.parse(tmp_path / "f.svg").getroot()


def test_pixels_are_where_the_units_say(tmp_path):
    image, _ = page(tmp_path)
    assert image.size == (120, 80)
    colours = [image.getpixel(at) for at in ((20, 20), (59, 39), (60, 40), (80, 20), (90, 40), (60, 70))]
    white = (255, 255, 255)
    assert colours == [(0, 114, 178), (0, 114, 178), white, (213, 94, 0), white, (0, 158, 115)]
    assert image.crop((4, 2, 40, 18)).convert("L").getextrema()[0] < 80  # the words


def test_the_svg_holds_the_same_and_any_words(tmp_path):
    _, root = page(tmp_path)
    names = [element.tag.rpartition("}")[2] for element in root]
    assert names == ["rect", "rect", "rect", "polyline", "text"]
    assert root[-1].text == "a < b & c" and root[1].get("fill") == "#0072b2"


def test_the_scale_runs_from_dark_blue_to_yellow_and_ends_there():
    assert [heat(share) for share in (-1, 0, 0.5, 1, 2)] == ["#00224e", "#00224e", "#7d7c78", "#fee838", "#fee838"]
