"""Example workflows open clear of the page's own bars, with room for nodes that grow, and type no number for reach."""

import json
from pathlib import Path

import pytest

WORKFLOWS = sorted((Path(__file__).parents[2] / "example_workflows").glob("*.json"))
TITLE = 30
# What a preview adds to a node below its saved size (measured on page 1.58.1 with Nodes 2.0).
PREVIEW = 262
SHOWS = {"LDZNetSegment", "LDZNetSegmentCaptured", "LDZNetAttentionMask", "LDZNetLabelMap", "LDZNetRefineMask"}
SIDEBAR, BARS = 72, 95  # pixels of the screen


def box(node: dict) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a node that has grown."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height + (PREVIEW if node["type"] in SHOWS else 0)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nodes_have_room_and_nothing_is_covered(path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    boxes = {node["id"]: box(node) for node in workflow["nodes"]}
    for a, (left, top, right, bottom) in boxes.items():
        for b, other in boxes.items():
            apart = a >= b or right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart, f"nodes {a} and {b} overlap"
    view = workflow["extra"]["ds"]
    tops = [box[1] for box in boxes.values()] + [group["bounding"][1] for group in workflow["groups"]]
    lefts = [box[0] for box in boxes.values()]
    assert (min(lefts) + view["offset"][0]) * view["scale"] >= SIDEBAR
    assert (min(tops) + view["offset"][1]) * view["scale"] >= BARS
    for group in workflow["groups"]:
        x, y, width, height = group["bounding"]
        inside = [b for b in boxes.values() if x <= b[0] < x + width]
        assert all(b[2] <= x + width and y <= b[1] and b[3] <= y + height for b in inside), group["title"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_refine_mask_gets_reach_from_the_node_that_made_the_mask(path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        if node["type"] == "LDZNetRefineMask":
            linked = {slot["name"]: slot["link"] for slot in node["inputs"]}
            links = {link[0]: link for link in workflow["links"]}
            assert links[linked["reach"]][1] == links[linked["mask"]][1] and links[linked["reach"]][2] == 3


def test_the_template_for_any_checkpoint_comes_first_and_has_five_nodes():
    workflow = json.loads(WORKFLOWS[0].read_text(encoding="utf-8"))
    kinds = {node["type"] for node in workflow["nodes"]} - {"MarkdownNote"}
    assert kinds == {"CheckpointLoaderSimple", "LoadImage", "LDZNetAttentionMask", "LDZNetRefineMask", "MaskPreview"}
