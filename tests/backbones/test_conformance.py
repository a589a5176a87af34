"""Every backbone keeps the contract of `backbones.base.Backbone`: torch's own, diffusers', ComfyUI's, ComfyUI's for
models of any family, and those of the WebUIs."""

import inspect

import pytest
import torch
import webui_models
from seeded import seed_weights
from studio import hooks

from ldznet_core import load_backbone
from ldznet_core.backbones.base import CAPABILITIES, Backbone
from ldznet_core.networks.unet import UNet

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")
METHODS = {name: method for name, method in vars(Backbone).items() if inspect.isfunction(method) and name[0] != "_"}
FIELDS = [name for name in Backbone.__annotations__]


@pytest.fixture(scope="module")
def torch_ldm(made):
    return load_backbone(made / "mini.safetensors")


@pytest.fixture(scope="module")
def diffusers(made, tmp_path_factory):
    pytest.importorskip("diffusers")
    from diffusers_models import UNETS, save_model

    from ldznet_core.checkpoints.diffusers_folder import unet_config

    sizes = unet_config({"in_channels": 4, "out_channels": 4, **UNETS["sd1"]})
    folder = tmp_path_factory.mktemp("conformance") / "sd1"
    return load_backbone(save_model(folder, "sd1", seed_weights(UNet(sizes), 0), made / "tokenizer"))


@pytest.fixture(scope="module")
def comfy(core, mini):
    return core("backbones.comfy").ComfyBackbone(mini.model, mini.clip, mini.vae)


@pytest.fixture(scope="module")
def comfy_x0(core, mini):
    return core("backbones.comfy_x0").ComfyX0Backbone(mini.model, mini.clip, mini.vae)


@pytest.fixture(scope="module")
def webui_a1111(made):
    with webui_models.backbone_of("a1111", made) as backbone:
        yield backbone


@pytest.fixture(scope="module")
def webui_forge(made):
    with webui_models.backbone_of("forge", made) as backbone:
        yield backbone


@pytest.fixture(params=["torch_ldm", "diffusers", "comfy", "comfy_x0", "webui_a1111", "webui_forge"])
def backbone(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def z():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def able(backbone, capability):
    if capability not in backbone.capabilities:
        pytest.skip(f"it gives no {CAPABILITIES[capability]}")
    return backbone


def test_the_contract_has_members():
    assert {"encode", "embed", "extract", "observe", "project", "denoise", "ready", "transformer"} == set(METHODS)


def test_fields_and_signatures_are_those_of_the_contract(backbone):
    assert all(hasattr(backbone, name) for name in FIELDS)
    assert backbone.capabilities <= set(CAPABILITIES)
    optional = {"denoise"} if "denoise" not in backbone.capabilities else set()
    for name in METHODS.keys() - optional:
        expected, found = inspect.signature(METHODS[name]), inspect.signature(getattr(type(backbone), name))
        assert [(p.name, p.kind, p.default) for p in found.parameters.values()] == [
            (p.name, p.kind, p.default) for p in expected.parameters.values()
        ], name


def test_images_become_latents_an_eighth_as_large(backbone):
    images = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(2))
    z = backbone.encode(images)
    assert z.shape == (1, backbone.channels, 8, 12) and z.isfinite().all()
    assert torch.equal(z, backbone.encode(images))


def test_a_text_is_a_row(backbone):
    texts = backbone.embed(["a cat", "", "red apple"])
    assert len(texts) == 3 and len(texts[1:]) == 2


def test_maps_come_from_one_pass_that_ends_early_and_leaves_no_hook(backbone, z):
    able(backbone, "features")
    taps, text = backbone.unet_config.taps, backbone.embed(["cat", "apple"])
    after = backbone.transformer(backbone.unet_config.transformers[-1])
    calls = []
    handle = after.register_forward_hook(lambda *given: calls.append(1))
    features = backbone.extract(z, text, taps, timestep=350, seed=3)
    handle.remove()
    assert features.taps == taps and features.timestep == 350 and not calls
    assert all(len(m) == 2 and m.ndim == 4 for m in features.maps)
    assert all(hooks(backbone.transformer(tap)) == 0 for tap in taps)


def test_the_seed_decides_the_noise(backbone, z):
    able(backbone, "features")
    text, taps = backbone.embed(["cat", "apple"]), backbone.unet_config.taps[:1]
    one, again, other = (backbone.extract(z, text, taps, timestep=400, seed=s).maps[0] for s in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_keys_are_made_of_a_context(backbone, z):
    able(backbone, "queries")
    layer = backbone.transformer("middle_block").transformer_blocks[0].attn2.to_k
    context = backbone.embed(["cat"]).context
    (keys,) = backbone.project(context, [layer])
    assert keys.shape[:2] == context.shape[:2] and keys.isfinite().all()


def test_the_clean_latent_is_estimated(backbone, z):
    able(backbone, "denoise")
    clean = backbone.denoise(z, backbone.embed(["cat", "apple"]), timestep=400, seed=1)
    assert clean.shape == z.shape and clean.isfinite().all()


def test_latents_that_are_not_finite_are_refused_by_a_pass(backbone, z):
    able(backbone, "features")
    text = backbone.embed(["cat", "apple"])
    with pytest.raises(ValueError, match="not finite"):
        backbone.extract(z * float("nan"), text, backbone.unet_config.taps)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_what_a_backbone_lacks_is_refused_in_one_sentence(backbone, capability, core):
    from ldznet_core.backbones.base import require

    if capability in backbone.capabilities:
        return require(backbone, capability)
    with pytest.raises(ValueError, match=f"gives no {CAPABILITIES[capability]}: choose a method"):
        require(backbone, capability)
