"""The pack in ComfyUI's own page, in headless Chromium."""

import os
import re

import pytest
from browser import call, check_no_trouble, load, needs_page, until
from client import EXAMPLES, ROOT, Server, to_api

pytestmark = needs_page
FIRST = ROOT / "example_workflows/miniature_generate_mask_inpaint_composite.json"
NO_DECODER = ROOT / "example_workflows/any_checkpoint_words_to_mask_no_decoder.json"
# Pictures shown on a node, as [width, height].
SHOWN = """
    const node = app.graph.nodes.find((n) => n.type === arguments[0])
    return (node.imgs ?? []).filter((i) => i.complete).map((i) => [i.naturalWidth, i.naturalHeight])
"""


def ended(server: Server) -> dict:
    """The newest run in the server's history, when nothing waits or runs."""
    queue = server.json("/queue")
    history = server.json("/history")
    return not (queue["queue_running"] or queue["queue_pending"]) and history and list(history.values())[-1]


def test_example_workflow_runs_in_the_page(page, server):
    server.post("/history", {"clear": True})
    load(page, FIRST)
    call(page, "app.queuePrompt(0)")
    assert until(lambda: ended(server))["status"]["status_str"] == "success"
    shown = until(lambda: page.execute_script(SHOWN, "LDZNetSegmentCaptured"))
    assert len(shown) == 2 and all(side >= 128 for size in shown for side in size)
    check_no_trouble(page)
    if picture := os.environ.get("LDZNET_SCREENSHOT"):
        page.save_screenshot(picture)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_page_sends_what_the_workflow_says(page, server, path):
    workflow = load(page, path)
    sent = call(page, "app.graphToPrompt()")["output"]
    graph = {id: {key: n[key] for key in ("class_type", "inputs")} for id, n in sent.items()}
    assert graph == to_api(workflow, server.json("/object_info"))
    check_no_trouble(page)


@pytest.mark.parametrize(("path", "name"), [(FIRST, "LDZNetSegmentCaptured"), (NO_DECODER, "LDZNetAttentionMask")])
def test_help_page_opens_beside_the_graph(page, path, name):
    load(page, path)
    page.execute_script("app.canvas.selectNode(app.graph.nodes.find((n) => n.type === arguments[0]))", name)
    until(lambda: page.execute_script("return document.querySelector('[data-testid=info-button]')")).click()
    until(lambda: page.execute_script("return document.querySelector('.node-help-content table')"))
    text = page.execute_script("return document.querySelector('.node-help-content').innerText")
    written = (ROOT / f"web/docs/{name}.md").read_text(encoding="utf-8")
    for heading in re.findall("^## (.+)$", written, re.MULTILINE):
        assert heading in text
    pictures = "return [...document.querySelectorAll('.node-help-content img')].map((i) => i.naturalWidth)"
    until(lambda: all(page.execute_script(pictures)))
    check_no_trouble(page)
