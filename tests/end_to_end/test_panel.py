"""The panel that shows every word, in ComfyUI's own page, with nodes drawn on the canvas and by Vue (Nodes 2.0)."""

import os
from pathlib import Path

import pytest
from browser import SETTINGS, call, check_no_trouble, needs_page, until, visit
from client import node

webdriver = pytest.importorskip("selenium.webdriver", reason="NO PAGE TESTED: install selenium to run these tests")
pytestmark = needs_page
SHOTS = os.environ.get("LDZNET_SCREENSHOTS")  # a folder for pictures of what the tests see
GRAPH = {
    "101": node("LDZNetLoadMini"),
    "102": node("LoadImage", image="park.png"),
    "103": node(
        "LDZNetSegment", model=("101", 0), clip=("101", 1), vae=("101", 2), decoder=("101", 3), image=("102", 0),
        text="panda | pumpkin | fish", timestep=-1, seed=0, threshold=0.5, samples=1, tiles=False,
    ),
}
# Where the button of the node that makes masks is on the screen.
BUTTON = """
    const made = [...document.querySelectorAll("[data-node-id='103'] button")].at(-1)
    if (made) {
        const {x, y, width, height} = made.getBoundingClientRect()
        return [x + width / 2, y + height / 2]
    }
    const node = app.graph.nodes.find((n) => n.type === "LDZNetSegment")
    const button = node.widgets.find((w) => w.type === "button")
    const {scale, offset} = app.canvas.ds
    const {left, top} = app.canvas.canvas.getBoundingClientRect()
    return [left + (node.pos[0] + offset[0] + node.size[0] / 2) * scale,
            top + (node.pos[1] + offset[1] + (button.last_y ?? button.y) + 10) * scale]
"""
# Segment on the left of the screen, where the panel does not cover it.
PLACE = """
    Object.assign(app.canvas.ds, {scale: 1, offset: [300, 200]})
    for (const node of app.graph.nodes) node.pos = node.type === "LDZNetSegment" ? [0, 0] : [-1000, 100 * node.id]
    app.graph.setDirtyCanvas(true, true)
"""
ROWS = """
    return [...document.querySelectorAll(".ldznet-panel li")].map((e) => [e.innerText.split("\\n")[0].trim(),
        e.querySelector("output").textContent])
"""
# The colour [r, g, b] of the panel's picture at a place in shares of its width and height.
PIXEL = """
    const canvas = document.querySelector(".ldznet-panel canvas")
    const place = [arguments[0] * canvas.width, arguments[1] * canvas.height]
    return [...canvas.getContext("2d").getImageData(...place, 1, 1).data].slice(0, 3)
"""
THRESHOLD = """
    const node = app.graph.nodes.find((n) => n.type === "LDZNetSegment")
    return node.widgets.find((w) => w.name === "threshold").value
"""
PANDA, PUMPKIN, GRASS = (0.3, 0.75), (0.73, 0.4), (0.05, 0.05)


@pytest.fixture(params=[False, True], ids=["canvas", "nodes 2.0"])
def nodes2(request, page, server):
    """The page with Nodes 2.0 off or on and Segment in it; a name for pictures of it."""
    server.post("/settings", {**SETTINGS, "Comfy.VueNodes.Enabled": request.param})
    visit(page, server)
    page.get_log("browser")
    call(page, "Promise.resolve(app.loadApiJson(given, 'panel')).then(() => null)", GRAPH)
    page.execute_script(PLACE)
    yield "nodes2" if request.param else "canvas"
    server.post("/settings", {"Comfy.VueNodes.Enabled": False})


def shot(page, name: str) -> None:
    if SHOTS:
        page.save_screenshot(str(Path(SHOTS) / f"{name}.png"))


def press_look(page) -> None:
    """Click the node's button, again where the page has not yet laid the node out."""

    def opened():
        x, y = page.execute_script(BUTTON)
        mouse = webdriver.ActionChains(page)
        mouse.w3c_actions.pointer_action.move_to_location(round(x), round(y)).click()
        mouse.w3c_actions.perform()
        return page.execute_script("return document.querySelector('.ldznet-panel:not([hidden])')")

    until(opened)


def run(page, server) -> None:
    server.post("/history", {"clear": True})
    call(page, "app.queuePrompt(0)")
    until(lambda: server.json("/history"))


def slide(page, value: float) -> None:
    page.execute_script(
        "const s = document.querySelector('.ldznet-panel input[type=range]'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'))", value,
    )
    until(lambda: page.execute_script("return document.querySelector('.ldznet-panel footer output').textContent")
          == f"{value:.2f}")


def point(page, x: float, y: float) -> None:
    canvas = page.find_element("css selector", ".ldznet-panel canvas")
    size = canvas.size
    webdriver.ActionChains(page).move_to_element_with_offset(
        canvas, round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])
    ).perform()


def test_the_panel_shows_switches_slides_reads_and_writes(page, server, nodes2):
    press_look(page)
    text = page.execute_script("return document.querySelector('.ldznet-panel .message').textContent")
    assert text == "Run the node to see its masks here"
    run(page, server)
    rows = until(lambda: page.execute_script(ROWS))
    assert [row[0] for row in rows] == ["panda", "pumpkin", "fish"]
    assert rows[0][1].endswith("%") and rows[2][1] == "not found"
    shot(page, f"{nodes2}-open")

    blue = page.execute_script(PIXEL, *PANDA)
    box = page.find_elements("css selector", ".ldznet-panel li input")[0]
    box.click()
    dark = until(lambda: (now := page.execute_script(PIXEL, *PANDA)) != blue and now)
    assert sum(dark) < sum(blue)
    box.click()
    until(lambda: page.execute_script(PIXEL, *PANDA) == blue)

    point(page, *PUMPKIN)
    scores = [float(row[1]) for row in page.execute_script(ROWS)]
    assert scores[1] > 0.9 and scores[0] < 0.1
    shot(page, f"{nodes2}-hover")
    point(page, *GRASS)
    assert all(float(row[1]) < 0.1 for row in page.execute_script(ROWS))

    canvas = page.find_element("css selector", ".ldznet-panel canvas")
    page.execute_script("arguments[0].focus()", canvas)
    canvas.send_keys("\ue012", "\ue015")  # left, down, from where the pointer is
    assert all(len(row[1]) == 4 for row in page.execute_script(ROWS))

    assert page.execute_script(THRESHOLD) == 0.5
    page.execute_script("arguments[0].blur()", canvas)
    slide(page, 1.0)
    assert {row[1] for row in page.execute_script(ROWS)} == {"not found"}
    slide(page, 0.2)
    assert page.execute_script(THRESHOLD) == 0.5, "nothing changes before the user says so"
    page.find_element("css selector", ".ldznet-panel .use").click()
    assert page.execute_script(THRESHOLD) == pytest.approx(0.2)
    assert not page.find_element("css selector", ".ldznet-panel .use").is_enabled()
    sent = call(page, "app.graphToPrompt()")["output"]
    (inputs,) = (n["inputs"] for n in sent.values() if n["class_type"] == "LDZNetSegment")
    assert inputs == {**GRAPH["103"]["inputs"], "threshold": pytest.approx(0.2)}
    shot(page, f"{nodes2}-used")
    check_no_trouble(page)
