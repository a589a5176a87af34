"""What tests of Segment without Decoder share, and what tests of prompts that act where words are being drawn share."""

import pytest
import torch
import torch.nn.functional as F
from studio import CHANGE, SCENE

PHRASES = "panda\npumpkin"


@pytest.fixture
def find(pack_nodes, mini):
    """Segment without Decoder on the miniature, without the gate unless asked; gives masks, union, overlay, reach."""

    def run(text=PHRASES, **options):
        options = {"clip": mini.clip, "vae": mini.vae, "presence": 0.0, **options}
        if "capture" not in options:
            options = {"model": mini.model, **options}
        return pack_nodes["LDZNetAttentionMask"].execute(text=text, **options).args

    return run


@pytest.fixture
def watched(pack_nodes, mini):
    """MODEL and CAPTURE of a new Capture node."""
    return pack_nodes["LDZNetCapture"].execute(mini.model).args


@pytest.fixture
def passes(core, monkeypatch):
    """How many latents each pass of the UNet looks at."""
    backbone, made = core("backbones.comfy").ComfyBackbone, []
    observe = backbone.observe
    monkeypatch.setattr(backbone, "observe", lambda own, z, *given, **options: made.append(len(z)) or observe(
        own, z, *given, **options
    ))
    return made


@pytest.fixture
def noises(core):
    """How many latents of pure noise attention is compared with, in one pass."""
    return core("segment.attention").NOISES


@pytest.fixture
def interrupted(engine, monkeypatch):
    """Run something that the user interrupts after some calls of the progress bar."""
    import comfy.utils

    manager = engine.model_management

    def run(work, after):
        left = iter(range(after))

        def tick(*given, **options):
            if next(left, None) is None:
                manager.interrupt_current_processing(True)
            manager.throw_exception_if_processing_interrupted()

        with monkeypatch.context() as patch, pytest.raises(manager.InterruptProcessingException):
            patch.setattr(comfy.utils.ProgressBar, "update_absolute", tick)
            work()

    return run


@pytest.fixture
def has_hooks(core):
    if core("backbones.comfy_steer").TransformerOptionsHook is None:
        pytest.skip("this ComfyUI is older than hooks of conditionings")


@pytest.fixture(scope="session")
def light(pack_nodes):
    with torch.inference_mode():
        return pack_nodes["LDZNetLoadDecoder"].execute("miniature: light (bundled)").args[0]


@pytest.fixture
def marked(pack_nodes, mini):
    """The CONDITIONING of a region."""

    def make(text="balloon", prompt=CHANGE, **options):
        node = pack_nodes["LDZNetConditioningSetWords"]
        return node.execute(mini.prompt(prompt), mini.clip, text, **options).args[0]

    return make


@pytest.fixture
def draw(mini):
    """Latents [B, 4, h, w] of some steps; the scene alone where no region is given."""

    def run(region=(), **options):
        options = {"steps": 5, "seed": 1, "positive": [*mini.prompt(SCENE), *region], **options}
        return mini.sample(**options)["samples"]

    return run


@pytest.fixture
def changes(pack_nodes, mini, light):
    """How much two latents differ in the mean, where the first has the balloon and where it has the panda."""

    def compare(plain, steered):
        nodes, latent = pack_nodes["LDZNetSegment"], {"samples": plain}
        masks = nodes.execute(mini.model, mini.clip, light, "balloon\npanda", latent=latent).args[0]
        places = F.avg_pool2d(masks[:, None], 8)[:, 0] > 0.5  # [2, h, w]
        change = (plain - steered).abs().amax(1)[0]  # [h, w]
        return change[places[0]].mean(), change[places[1]].mean()

    return compare


@pytest.fixture
def interrupt(mini, monkeypatch):
    """interrupt(sample, calls): run `sample` until the user interrupts it in its UNet's call number `calls`."""
    from comfy import model_management

    def run(sample, calls=3):
        network, forward, done = type(mini.unet), type(mini.unet).forward, []

        def interrupted(*args, **kwargs):
            done.append(1)
            if len(done) == calls:
                raise model_management.InterruptProcessingException
            return forward(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(network, "forward", interrupted)
            with pytest.raises(model_management.InterruptProcessingException):
                sample()

    return run
