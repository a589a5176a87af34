"""What tests of the node Segment without Decoder share."""

import pytest

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
