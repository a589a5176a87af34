"""A prompt that acts where words are being drawn, with a ControlNet, with an unCLIP image, and in a second pass."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from seeded import seed_weights, seeded
from studio import SCENE, hooks

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes", "has_hooks")


@dataclass
class Extension:
    """What guides a prompt beside its text: `applied(conditioning)` is a copy of a CONDITIONING with it. It works with
    `model`, and `networks` are computed while that samples."""

    model: object
    applied: Callable[[list], list]
    networks: tuple[torch.nn.Module, ...]


def controlnet(mini) -> Extension:
    """One of random weights, in ComfyUI's classes."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    import nodes

    sizes = mini.model.model.model_config.unet_config
    network = comfy.cldm.cldm.ControlNet(hint_channels=3, operations=comfy.ops.manual_cast, **sizes)
    control = comfy.controlnet.ControlNet(seed_weights(network, 1), load_device=mini.model.load_device)
    hint = seeded("hint", (1, 256, 256, 3), 1).sigmoid()

    def applied(conditioning):
        return nodes.ControlNetApplyAdvanced().apply_controlnet(conditioning, [], control, hint, 0.2, 0.0, 1.0)[0]

    return Extension(mini.model, applied, (mini.unet, network))


def unclip(mini) -> Extension:
    """The miniature in ComfyUI's class for unCLIP checkpoints, with random weights for what an image adds to it."""
    from comfy.model_patcher import ModelPatcher

    import nodes

    width, plain = 16, mini.model.model.model_config
    options = {"timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
    noise = {"noise_schedule_config": options, "timestep_dim": width}
    kind = type("UnclipMiniature", (type(plain),), {"noise_aug_config": noise})
    config = kind({**plain.unet_config, "num_classes": "sequential", "adm_in_channels": 2 * width})
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, "", device=mini.model.offload_device)
    seed_weights(base.diffusion_model.label_emb, 1)
    missing, _ = base.diffusion_model.load_state_dict(mini.unet.state_dict(), strict=False)
    assert missing and all(name.startswith("label_emb.") for name in missing)
    base.eval().requires_grad_(False)
    seen = SimpleNamespace(image_embeds=seeded("image", (1, width), 1))

    def applied(conditioning):
        return nodes.unCLIPConditioning().apply_adm(conditioning, seen, 1.0, 0.0)[0]

    model = ModelPatcher(base, load_device=mini.model.load_device, offload_device=mini.model.offload_device)
    return Extension(model, applied, (base.diffusion_model,))


@pytest.fixture(params=[controlnet, unclip], ids=lambda make: make.__name__)
def extension(request, mini):
    return request.param(mini)


@pytest.fixture
def draw_with(extension, draw):
    """As `draw`, with the model of the extension."""
    return lambda *region, **options: draw(*region, model=extension.model, seed=12, **options)


@pytest.fixture
def guided_scene(extension, mini):
    """The scene's prompt with the extension."""
    return extension.applied(mini.prompt(SCENE))


def test_on_every_prompt_it_leaves_the_region_where_it_is(draw_with, extension, guided_scene, changes, marked, light):
    region = extension.applied(marked(decoder=light, feather=0.0))
    plain = draw_with(positive=guided_scene)
    there, elsewhere = changes(plain, draw_with(positive=guided_scene + region))
    assert there > 1 and elsewhere < 0.1 * there
    assert not torch.allclose(plain, draw_with(), atol=0.1), "the extension does something"


def test_on_the_prompt_of_the_region_it_acts_there_only(draw_with, extension, changes, marked, light):
    region = marked(prompt=SCENE, decoder=light, feather=0.0)
    there, elsewhere = changes(draw_with(region), draw_with(extension.applied(region)))
    assert there > 0.1 and elsewhere < 0.2 * there


def test_without_share_the_others_draw_as_without_it(draw_with, extension, guided_scene, marked):
    plain, region = draw_with(positive=guided_scene), extension.applied(marked(strength=0.0))
    assert torch.equal(plain, draw_with(positive=guided_scene + region))
    assert torch.equal(draw_with(), draw_with(region))


def test_an_interrupted_run_leaves_nothing(draw_with, extension, guided_scene, marked, interrupt):
    region, options = extension.applied(marked(follow=True)), str(extension.model.model_options)
    plain, steered = draw_with(positive=guided_scene), draw_with(positive=guided_scene + region)
    interrupt(lambda: draw_with(positive=guided_scene + region), calls=4)
    assert [hooks(network) for network in extension.networks] == [0] * len(extension.networks)
    assert str(extension.model.model_options) == options
    assert torch.equal(draw_with(positive=guided_scene), plain)
    assert torch.equal(draw_with(positive=guided_scene + region), steered)


@pytest.fixture
def first_pass(draw):
    """A LATENT drawn with a region, enlarged."""
    import nodes

    def run(region):
        latent = {"samples": draw(region, seed=12, steps=8)}
        return nodes.LatentUpscaleBy().upscale(latent, "bilinear", 1.5)[0]

    return run


@pytest.fixture
def second_pass(draw):
    return lambda latent, region=(): draw(region, latent=latent, denoise=0.5, seed=7)


def test_in_a_second_pass_the_region_holds(first_pass, second_pass, changes, marked, light):
    region = marked(decoder=light, feather=0.0)
    latent = first_pass(region)
    plain, steered = second_pass(latent), second_pass(latent, region)
    assert steered.shape == (1, 4, 48, 48)
    there, elsewhere = changes(plain, steered)
    assert there > 1 and elsewhere < 0.1 * there
    assert torch.equal(plain, second_pass(latent, marked(strength=0.0)))


def test_an_interrupted_second_pass_leaves_nothing(first_pass, second_pass, marked, mini, interrupt):
    region, options = marked(), str(mini.model.model_options)
    latent = first_pass(region)
    steered = second_pass(latent, region)
    interrupt(lambda: second_pass(latent, region))
    assert hooks(mini.unet) == 0 and str(mini.model.model_options) == options
    assert torch.equal(latent["samples"], first_pass(region)["samples"])
    assert torch.equal(steered, second_pass(latent, region))
