"""The pack in ComfyUI's own page, in headless Chromium."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
from client import EXAMPLES, PACK, ROOT, Server, to_api

webdriver = pytest.importorskip("selenium.webdriver", reason="NO PAGE TESTED: install selenium to run these tests")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="NO PAGE TESTED: install chromium and chromedriver to run these tests"
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1800,1100"
).split()
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.InstalledVersion": "1.27.10"}
FIRST = ROOT / "example_workflows/miniature_generate_mask_inpaint_composite.json"
NO_DECODER = ROOT / "example_workflows/any_checkpoint_words_to_mask_no_decoder.json"
SECONDS = 120
# The page's errors: dialogs other than those that it keeps hidden, and red notices.
TROUBLE = """
    return [...document.querySelectorAll(".p-dialog, .p-toast-message-error, .comfy-modal")]
        .filter((e) => e.checkVisibility()).map((e) => e.innerText)
"""
# Pictures shown on a node, as [width, height].
SHOWN = """
    const node = app.graph.nodes.find((n) => n.type === arguments[0])
    return (node.imgs ?? []).filter((i) => i.complete).map((i) => [i.naturalWidth, i.naturalHeight])
"""
# What a call of the page gives, once it has: arguments are its text and what it is called with.
AWAIT = """
    const [call, given, done] = arguments
    new Function("given", "return " + call)(given).then((value) => done({value}), (error) => done({error: `${error}`}))
"""


@pytest.fixture(scope="module")
def page(serve, tmp_path_factory):
    """ComfyUI's page in a browser, ready to be worked with."""
    server = serve()
    server.post("/settings", SETTINGS)  # or the page opens with a choice of templates
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    page = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    page.set_script_timeout(SECONDS)
    try:
        page.get(server.url)
        until(lambda: page.execute_script("return window.app?.vueAppReady && !!app.graph"))
        yield page
    finally:
        page.quit()


def until(holds):
    """Wait until `holds()` gives something, and give it."""
    deadline = time.monotonic() + SECONDS
    while not (value := holds()):
        assert time.monotonic() < deadline, "the page did not get there in time"
        time.sleep(0.2)
    return value


def call(page, text: str, given=None):
    """The value of an asynchronous call in the page, such as "app.queuePrompt(0)"."""
    result = page.execute_async_script(AWAIT, text, given)
    assert "error" not in result, result
    return result.get("value")


def load(page, path: Path) -> dict:
    """Open a workflow in the page; the workflow."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    page.get_log("browser")  # what came before is of other tests
    call(page, "app.loadGraphData(given)", workflow)
    return workflow


def check_no_trouble(page) -> None:
    assert page.execute_script(TROUBLE) == []
    errors = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [message for message in errors if PACK in message or "LDZNet" in message]


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
