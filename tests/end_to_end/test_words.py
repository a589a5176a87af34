"""Words shown on the Capture node of ComfyUI's own page while its sampler works."""

from browser import call, check_no_trouble, needs_page, until
from client import node

pytestmark = needs_page
GRAPH = {
    "201": node("LDZNetLoadMini"),
    "202": node("LDZNetCapture", model=("201", 0), clip=("201", 1), words="panda, balloon"),
    "203": node("CLIPTextEncode", clip=("201", 1), text="a panda and a balloon on a blue background"),
    "204": node("CLIPTextEncode", clip=("201", 1), text=""),
    "205": node("EmptyLatentImage", width=128, height=128, batch_size=1),
    "206": node(
        "KSampler", model=("202", 0), positive=("203", 0), negative=("204", 0), latent_image=("205", 0), seed=0,
        steps=12, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    ),
    "207": node("VAEDecode", samples=("206", 0), vae=("201", 2)),
    "208": node("PreviewImage", images=("207", 0)),
}
LISTEN = """
    import("/scripts/api.js").then(({api}) => {
        window.previews = []
        api.addEventListener("b_preview_with_metadata", ({detail}) => window.previews.push(detail.displayNodeId))
    })
"""


def test_words_are_shown_on_the_capture_node(page, server):
    page.get_log("browser")
    call(page, "Promise.resolve(app.loadApiJson(given, 'words')).then(() => null)", GRAPH)
    page.execute_script(LISTEN)
    until(lambda: page.execute_script("return window.previews !== undefined"))
    server.post("/history", {"clear": True})
    call(page, "app.queuePrompt(0)")
    until(lambda: server.json("/history"))
    assert "202" in until(lambda: page.execute_script("return window.previews"))
    check_no_trouble(page)
