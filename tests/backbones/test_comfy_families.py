"""SD 1.x, 2.x and SDXL as ComfyUI builds them, at reduced size: its classes compute what ours do, and are captured."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from seeded import seed_weights, seeded
from studio import hooks

POOLED, VECTOR = 1280, 2816  # ComfyUI makes SDXL's vector itself: these are as large as in the real one
WIDTH = 64  # of texts

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


def load(engine, family: str, prediction: str, unet):
    """MODEL of ComfyUI's class for a family, with the sizes and the weights of our UNet."""
    import comfy.supported_models as families
    from comfy.model_base import ModelType
    from comfy.model_patcher import ModelPatcher

    sizes = unet.config
    levels, blocks = range(len(sizes.channel_mult)), sizes.num_res_blocks
    depths = [sizes.depth(level) if level in sizes.attention_levels else 0 for level in levels]
    extra = {"num_classes": "sequential"} if sizes.vector_channels else {}

    class Reduced(getattr(families, family)):
        if not sizes.head_channels:
            unet_extra_config = {"num_heads": sizes.num_heads, "num_head_channels": -1}

        def model_type(self, state_dict, prefix=""):
            return ModelType.V_PREDICTION if prediction == "v" else ModelType.EPS

    config = Reduced({
        "use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False,
        "in_channels": 4, "out_channels": 4, "model_channels": sizes.model_channels,
        "num_res_blocks": [blocks for _ in levels], "channel_mult": list(sizes.channel_mult),
        "transformer_depth": [d for d in depths for _ in range(blocks)],
        "transformer_depth_output": [d for d in depths for _ in range(blocks + 1)],
        "transformer_depth_middle": sizes.depth(levels[-1]), "context_dim": sizes.context_dim,
        "adm_in_channels": sizes.vector_channels or None, "use_linear_in_transformer": sizes.use_linear,
        "use_temporal_attention": False, "use_temporal_resblock": False, **extra,
    })  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, "", device="cpu")
    base.diffusion_model.load_state_dict(unet.state_dict())  # strict: the names are the same
    base.eval().requires_grad_(False)
    return ModelPatcher(base, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def clip() -> SimpleNamespace:
    """A CLIP that writes the texts of no model, always the same."""

    def tokenize(text: str) -> dict:
        words = [100 + sum(map(ord, word)) for word in text.split()]
        return {"l": [[(token, 1.0) for token in (1, *words, 2)]], "text": text}

    def encode(tokens: dict, return_pooled: bool = False):
        text = tokens["text"]
        context, pooled = seeded(f"context {text}", (1, 77, WIDTH), 0), seeded(f"pooled {text}", (1, POOLED), 0)
        return (context, pooled) if return_pooled else context

    made = SimpleNamespace(clip_layer=lambda layer: None, tokenize=tokenize, encode_from_tokens=encode)
    made.clone = lambda: made
    return made


@pytest.fixture(scope="module", params=["sd1", "sd2", "sd2-v", "sdxl"])
def family(request, engine, core):
    """A family's MODEL, a host on it, and our UNet with the same weights."""
    unets = core("networks.unet")
    sd2 = replace(unets.SD2, model_channels=64, context_dim=WIDTH)
    sdxl = replace(unets.SDXL, model_channels=32, transformer_depth=(0, 1, 2), context_dim=WIDTH)
    name, prediction, sizes = {
        "sd1": ("SD15", "eps", unets.UNetConfig(model_channels=32, num_heads=2, context_dim=WIDTH)),
        "sd2": ("SD20", "eps", sd2),
        "sd2-v": ("SD20", "v", sd2),
        "sdxl": ("SDXL", "eps", sdxl),
    }[request.param]
    unet = seed_weights(unets.UNet(sizes), 3)
    model = load(engine, name, prediction, unet)
    backbone = core("backbones.comfy").ComfyBackbone(model, clip())
    return SimpleNamespace(name=name, prediction=prediction, unet=unet, model=model, backbone=backbone)


def close(a, b) -> bool:
    return float((a - b).abs().max() / b.abs().max()) < 1e-4


def vector(core, pooled, height: int, width: int):
    """SDXL's vector as it was trained: pooled texts, then the picture's size, its crop and its size again."""
    numbers = torch.tensor([height, width, 0, 0, height, width])
    sizes = core("networks.layers").timestep_embedding(numbers, 256).flatten()
    return torch.cat([pooled, sizes.expand(len(pooled), -1)], dim=1)  # [B, 1280 + 6 * 256]


@pytest.fixture
def given(family, core):
    """A latent, two texts, and the vector that goes with them where the family has one."""
    z, text = seeded("z", (2, 4, 8, 16), 1), family.backbone.embed(["cat", "red hat"])
    return z, text, None if text.pooled is None else vector(core, text.pooled, 64, 128)


def test_sizes_and_prediction_are_read(family):
    assert family.backbone.unet_config == family.unet.config and family.backbone.prediction == family.prediction
    scale = {"SDXL": 0.13025}.get(family.name, 0.18215)
    assert torch.allclose(family.backbone.scaled(torch.ones(1, 4, 2, 2)), torch.tensor(scale))


def test_texts_have_pooled_ones_for_sdxl_alone(family, given):
    _, text, _ = given
    assert text.context.shape == (2, 77, WIDTH)
    assert text.pooled.shape == (2, POOLED) if family.name == "SDXL" else text.pooled is None


def test_a_whole_pass_is_the_same(family, given):
    z, text, y = given
    base, t = family.model.model, torch.tensor([400, 40])
    ours = family.unet(z, t, text.context, vector=y)
    extra = {} if y is None else {"y": y}
    assert close(base.diffusion_model(z, t, context=text.context, **extra), ours)

    sampling, sigma = base.model_sampling, base.model_sampling.sigma(t.float())
    sigma = sigma[:1].expand(2)
    theirs = base.apply_model(z, sigma, c_crossattn=text.context, transformer_options={}, **extra)
    ours = family.unet(sampling.calculate_input(sigma, z), t[:1].expand(2), text.context, vector=y)
    assert close(theirs, sampling.calculate_denoised(sigma, ours, z))


@pytest.mark.parametrize("timestep", [300, 499])
def test_features_are_the_same(family, given, core, timestep):
    z, text, y = given
    how = {"timestep": timestep, "seed": 7, "conditioning": "empty"}
    features = family.backbone.extract(z, text, family.unet.config.taps, **how)
    timesteps = torch.full((2,), timestep)
    schedule = core("networks.schedule")
    z_t = schedule.Schedule.stable_diffusion().add_noise(z, schedule.noise_like(z, 7), timesteps)
    maps = family.unet.extract(z_t, timesteps, text.context, features.taps, y)
    assert len(maps) == 5 and all(close(a, b) for a, b in zip(features.maps, maps, strict=True))
    assert features.text == "empty" and hooks(family.model.model) == 0


def test_what_attention_asks_and_what_noise_says_are_the_same(family, given, core):
    z, text, y = given
    schedule = core("networks.schedule")
    chosen = core("backbones.families.unet").plan(family.unet.config, 8, 16)
    outputs = family.backbone.observe(z, text, chosen.modules(family.backbone.transformer), timestep=100, seed=7)
    timesteps = torch.full((2,), 100)
    noise = schedule.noise_like(z, 7)
    z_t = schedule.Schedule.stable_diffusion().add_noise(z, noise, timesteps)

    def find(block):
        return core("backbones.comfy").transformer(family.unet, block)

    with core("backbones.recording").record(chosen.modules(find)) as expected:
        out = family.unet(z_t, timesteps, text.context, vector=y)
    assert outputs.keys() == expected.keys() and all(close(outputs[name], expected[name]) for name in outputs)
    clean = schedule.Schedule.stable_diffusion(family.prediction).split(out, z_t, timesteps)[0]
    other = core("backbones.comfy_x0").ComfyX0Backbone(family.model, clip())
    assert close(other.denoise(z, other.embed(["cat", "red hat"]), timestep=100, seed=7), clean)
    keys = family.backbone.project(text.context, chosen.keys(family.backbone.transformer))
    assert all(close(a, layer(text.context)) for a, layer in zip(keys, chosen.keys(find), strict=True))
    assert hooks(family.model.model) == 0


@pytest.fixture(scope="module")
def decoder(family, core):
    """A random decoder for the family, in ComfyUI's hands."""
    made = core("decoders.unet")
    decoder = made.MaskDecoder(made.DecoderConfig("ldznet", family.unet.config, grid=8))
    return core("backbones.comfy").manage(seed_weights(decoder, 5))


def draw(family, model) -> dict:
    """A LATENT from stock KSampler."""
    import nodes

    words = family.backbone.embed(["cat", ""])
    prompts = [
        [[words.context[i : i + 1], {} if words.pooled is None else {"pooled_output": words.pooled[i : i + 1]}]]
        for i in range(2)
    ]
    blank = {"samples": torch.zeros(1, 4, 8, 8)}
    return nodes.KSampler().sample(model, 0, 12, 3.0, "euler", "normal", *prompts, blank)[0]


def test_sampling_is_the_same_with_capture_and_gives_masks(family, decoder, pack_nodes, monkeypatch):
    monkeypatch.setattr(type(family.backbone), "extract", None)  # no pass beside the sampler's own
    model, capture = pack_nodes["LDZNetCapture"].execute(family.model).args
    plain, latent = draw(family, family.model), draw(family, model)
    assert torch.equal(plain["samples"], latent["samples"]) and latent["samples"].isfinite().all()
    assert capture.features(latent["samples"]).taps == family.unet.config.taps and hooks(family.model.model) == 0
    found = pack_nodes["LDZNetSegmentCaptured"].execute(capture, latent, clip(), decoder, "cat | hat").args[0]
    assert found.shape == (2, 64, 64) and found.isfinite().all() and found.std() > 0


def test_attention_masks_come_from_a_capture_or_a_pass(family, pack_nodes, monkeypatch):
    node = pack_nodes["LDZNetAttentionMask"]
    model, capture = pack_nodes["LDZNetCapture"].execute(family.model).args
    latent = draw(family, model)
    looked, observe = [], type(family.backbone).observe
    monkeypatch.setattr(type(family.backbone), "observe", lambda *a, **k: looked.append(len(a[1])) or observe(*a, **k))
    noise = {"model": family.model, "method": "noise"}
    for given, passes in ({"capture": capture}, 1), ({"model": family.model}, 2), (noise, 0):
        looked.clear()
        found = node.execute(clip(), "cat | red hat", latent=latent, presence=0.0, **given).args[0]
        assert found.shape == (2, 64, 64) and found.isfinite().all() and found.amax() > 0.5
        assert len(looked) == passes
    assert hooks(family.model.model) == 0


def test_a_latent_is_segmented(family, decoder, pack_nodes):
    latent = {"samples": torch.randn(2, 4, 9, 8)}
    found = pack_nodes["LDZNetSegment"].execute(family.model, clip(), decoder, "cat | hat", latent=latent).args[0]
    assert found.shape == (4, 72, 64) and found.isfinite().all() and not torch.equal(found[0], found[1])


# ---- families without such a UNet ----------------------------------------------------------------


@pytest.fixture(scope="module")
def flux(engine):
    """A small random MODEL of the family Flux, whose transformer has no cross-attention, and a CLIP that fits."""
    from comfy import supported_models
    from comfy.ldm.flux.model import FluxParams
    from comfy.model_patcher import ModelPatcher

    torch.manual_seed(0)
    sizes = {
        "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 32,
        "context_in_dim": 48, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
        "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
        "txt_ids_dims": [],
    }  # fmt: skip
    sizes = {name: size for name, size in sizes.items() if name in FluxParams.__dataclass_fields__}
    config = supported_models.Flux({"image_model": "flux", **sizes})
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, "", device="cpu").eval().requires_grad_(False)
    for name, parameter in base.diffusion_model.named_parameters():  # ComfyUI leaves them as memory was
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape) / parameter[0].numel() ** 0.5
        else:
            parameter.data = torch.full(parameter.shape, float(name.endswith("scale")))
    cpu = torch.device("cpu")
    made = SimpleNamespace(clip_layer=lambda layer: None, tokenize=lambda text: text)
    made.encode_from_tokens = lambda text, return_pooled: (
        seeded(f"context {text}", (1, 20, 48), 0), seeded(f"pooled {text}", (1, 32), 0)
    )  # fmt: skip
    made.encode_from_tokens_scheduled = lambda text: [
        [made.encode_from_tokens(text, True)[0], {"pooled_output": made.encode_from_tokens(text, True)[1]}]
    ]
    made.clone = lambda: made
    return ModelPatcher(base, load_device=cpu, offload_device=cpu), made


def test_noise_masks_work_on_any_family(flux, pack_nodes):
    model, words = flux
    latent = {"samples": torch.randn(2, 16, 8, 12)}
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    node = pack_nodes["LDZNetAttentionMask"]
    found = node.execute(words, "cat | red hat", model=model, latent=latent, method="noise").args[0]
    assert found.shape == (4, 64, 96) and found.isfinite().all() and found.amax((1, 2)).min() > 0.9
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


def test_attention_is_refused_where_the_engine_does_not_show_it(flux, pack_nodes, core, monkeypatch):
    from comfy.ldm.modules import attention

    model, words = flux
    monkeypatch.delattr(attention, "wrap_attn", raising=False)
    latent = {"samples": torch.randn(1, 16, 8, 8)}
    with pytest.raises(core("errors").InputError, match="family Flux: update ComfyUI.*method noise"):
        pack_nodes["LDZNetAttentionMask"].execute(words, "cat", model=model, latent=latent)
    with pytest.raises(core("errors").InputError, match=r"reads \[B, 16, h, w\]"):
        four = {"samples": torch.randn(1, 4, 8, 8)}
        pack_nodes["LDZNetAttentionMask"].execute(words, "cat", model=model, latent=four, method="noise")
