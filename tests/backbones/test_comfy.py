"""ComfyUI's engine as a host: what we read from it is right, and it is left as it was."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from studio import hooks, park, unlike

from ldznet_core import load_backbone

TAPS = ("input_blocks.8", "middle_block", "output_blocks.3", "output_blocks.4", "output_blocks.5")

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


@pytest.fixture(scope="module")
def backbone(core, mini):
    return core("backbones.comfy").ComfyBackbone(mini.model, mini.clip, mini.vae)


@pytest.fixture(scope="module")
def ours():
    return load_backbone("mini")


@pytest.fixture
def z():
    return torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(5))


def close(a, b, tolerance=1e-5):
    return float((a - b).abs().max() / b.abs().max()) < tolerance


def test_comfyuis_classes_compute_what_ours_do(backbone, ours, z):
    text = ours.embed(["a cat", "a red apple"])
    context = text.context
    assert close(backbone.embed(["a cat", "a red apple"]).context, context)
    t = torch.tensor([400, 40])
    assert close(backbone.model.model.diffusion_model(z, t, context=context), ours.model.unet(z, t, context))
    assert close(backbone.vae.decode(z / 0.18215), ours.decode(z), 1e-4)
    assert asdict(backbone.unet_config) == asdict(ours.unet_config) and backbone.prediction == "v"
    maps, ours_maps = (h.extract(z, text, TAPS, timestep=350, seed=7).maps for h in (backbone, ours))
    assert all(close(a, b, 1e-4) for a, b in zip(maps, ours_maps, strict=True))


def test_brackets_in_a_phrase_are_letters(backbone, ours):
    assert close(backbone.embed(["cat (red:1.4)"]).context, ours.embed(["cat (red:1.4)"]).context)


def reference(backbone, core, z, context, timestep, seed):
    """The maps of one whole pass straight through the model, by plain forward hooks; and the modules it visits."""
    base, found, visited = backbone.model.model, {}, []
    modules = {tap: core("backbones.comfy").transformer(base.diffusion_model, tap) for tap in TAPS}
    handles = [m.register_forward_hook(lambda m, i, o, k=k: found.update({k: o.clone()})) for k, m in modules.items()]
    names = {m: name for name, m in base.diffusion_model.named_modules()}
    handles += [m.register_forward_hook(lambda m, i, o: visited.append(names[m])) for m in names]
    sigma = base.model_sampling.sigma(torch.tensor([float(timestep)]))
    noise = core("networks.schedule").noise_like(z, seed)
    z_t = base.model_sampling.noise_scaling(sigma, noise, z)
    base.apply_model(z_t, sigma.expand(len(z)), c_crossattn=context, transformer_options={})
    for handle in handles:
        handle.remove()
    return found, visited


@pytest.mark.parametrize("timestep", [300, 400, 499])
def test_features_equal_plain_hooks_on_a_whole_pass(backbone, core, z, timestep):
    text = backbone.embed(["cat", "red apple"])
    expected, _ = reference(backbone, core, z, text.context, timestep, seed=3)
    features = backbone.extract(z, text, TAPS, timestep=timestep, seed=3)
    assert features.timestep == timestep and features.taps == TAPS
    assert all(torch.equal(found, expected[tap]) for tap, found in zip(TAPS, features.maps, strict=True))


def test_the_pass_ends_at_the_last_tap(backbone, core, z):
    text = backbone.embed(["cat", "red apple"])
    _, everything = reference(backbone, core, z, text.context, 400, seed=0)
    visited, network = [], backbone.model.model.diffusion_model
    names = {m: name for name, m in network.named_modules()}
    handles = [m.register_forward_pre_hook(lambda m, i: visited.append(names[m])) for m in names]
    backbone.extract(z, text, TAPS)
    for handle in handles:
        handle.remove()
    last = everything.index("output_blocks.5.1")
    assert "output_blocks.5.1" in visited and "out" in everything
    assert not set(everything[last + 1 :]) - {"output_blocks.5", ""} & set(visited)
    assert not [name for name in visited if name.startswith(("output_blocks.5.2", "output_blocks.6", "out."))]


def out_of_memory(*given):
    raise MemoryError


def test_no_hook_stays_whatever_happens(backbone, core, z, mini):
    text = backbone.embed(["cat", "red apple"])
    backbone.extract(z, text, TAPS)
    assert hooks(mini.unet) == 0
    fault = mini.unet.output_blocks[3][0].register_forward_hook(out_of_memory)
    with pytest.raises(MemoryError):
        backbone.extract(z, text, TAPS)
    fault.remove()
    assert hooks(mini.unet) == 0


def patched(mini, name, change):
    clone = mini.model.clone()
    getattr(clone, f"set_model_{name}")(change)
    return clone


def test_other_nodes_patches_do_not_reach_the_features(core, mini, backbone, z):
    text = backbone.embed(["cat", "red apple"])
    free_u = patched(mini, "output_block_patch", lambda h, skip, options: (h * 1.4, skip))
    wrapped = patched(mini, "unet_function_wrapper", lambda apply, given: apply(given["input"], given["timestep"]) * 0)
    for model in (free_u, wrapped):
        other = core("backbones.comfy").ComfyBackbone(model, mini.clip).extract(z, text, TAPS)
        plain = backbone.extract(z, text, TAPS)
        assert all(torch.equal(a, b) for a, b in zip(other.maps, plain.maps, strict=True))


def test_a_lora_does_reach_them_and_is_gone_afterwards(core, mini, backbone, z):
    text = backbone.embed(["cat", "red apple"])
    before = mini.sample()["samples"]
    tuned = mini.model.clone()
    key = "diffusion_model.input_blocks.1.0.in_layers.2.weight"
    weight = mini.unet.input_blocks[1][0].in_layers[2].weight
    tuned.add_patches({key: (torch.ones_like(weight) * 0.01,)})
    maps = core("backbones.comfy").ComfyBackbone(tuned, mini.clip).extract(z, text, TAPS).maps
    assert not torch.equal(maps[0], backbone.extract(z, text, TAPS).maps[0])
    assert torch.equal(mini.sample()["samples"], before)


def test_nothing_of_ours_moves_the_users_random_numbers(backbone, z):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    backbone.encode(park()[:, :64, :64])
    assert torch.equal(torch.rand(3), expected)


def test_prompts_for_drawing_may_skip_layers_but_phrases_do_not(core, mini, backbone):
    clip = mini.clip.clone()
    clip.clip_layer(-2)
    skipping = core("backbones.comfy").ComfyBackbone(mini.model, clip)
    assert torch.equal(skipping.embed(["cat"]).context, backbone.embed(["cat"]).context)
    assert clip.layer_idx == -2


@pytest.mark.parametrize("sides", [(17, 21), (9, 16), (8, 8), (3, 40)])
def test_latents_of_any_size_give_masks_of_eight_times_that_size(core, mini, backbone, sides):
    segmenter = core("segment.decoder").Segmenter(backbone, mini.decoder.model)
    masks = segmenter.predict_latent(torch.randn(1, 4, *sides), ["cat", "pumpkin"]).masks
    assert masks.shape == (1, 2, sides[0] * 8, sides[1] * 8) and masks.isfinite().all()


def test_an_inpainting_checkpoint_of_nine_channels_works(core, made, pack_nodes, mini):
    comfy_mini, ldm, unet = core("backbones.comfy_mini"), core("checkpoints.ldm"), core("networks.unet")
    torch.manual_seed(0)
    tokenizer = core("checkpoints.tokenizer").ClipTokenizer.from_folder(made / "tokenizer")
    model = ldm.read(made / "mini.safetensors", tokenizer)
    model.unet = unet.UNet(replace(model.unet.config, in_channels=9)).eval()
    decoder = core("backbones.comfy").manage(core("decoders.files").load_decoder(made / "ldznet.safetensors"))
    clip = comfy_mini.load_clip(model, made / "tokenizer")
    latent = {"samples": torch.randn(1, 4, 8, 8)}
    masks = pack_nodes["LDZNetSegment"].execute(comfy_mini.load_model(model), clip, decoder, "cat", latent=latent)
    assert masks.args[0].shape == (1, 64, 64)


# --- refusals: one sentence that names what was given and what to do -------------------------------------


def sdxl(engine, mini):
    import comfy.supported_models as families

    sizes = {
        "use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False,
        "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048, "adm_in_channels": 2816,
        "num_classes": "sequential", "use_linear_in_transformer": True, "use_temporal_attention": False,
        "use_temporal_resblock": False, "dtype": torch.float32,
    }  # fmt: skip
    base = families.SDXL(sizes).get_model({}, "", device="meta")
    return unlike(mini.model, **{
        "diffusion_model": base.diffusion_model, "model_config": base.model_config,
        "model_sampling": base.model_sampling, "latent_format": base.latent_format,
    })  # fmt: skip


def test_an_sdxl_model_is_refused_by_an_sd1_decoder_with_both_named(engine, pack_nodes, mini, core):
    with pytest.raises(core("errors").InputError, match="context width 96, but that of the loaded SDXL .* is 2048"):
        pack_nodes["LDZNetSegment"].execute(
            sdxl(engine, mini), mini.clip, mini.decoder, "cat", latent={"samples": torch.zeros(1, 4, 16, 16)}
        )


@pytest.mark.parametrize("node", ["LDZNetSegment", "LDZNetCapture"])
def test_a_flux_of_unknown_structure_is_refused_by_name(pack_nodes, mini, core, node):
    import comfy.supported_models as families

    sizes, sampling = families.Flux({}), mini.model.model.model_sampling
    flux = unlike(mini.model, **{
        "diffusion_model": torch.nn.Linear(2, 2), "model_config": sizes, "model_sampling": sampling,
        "latent_format": sizes.latent_format,
    })  # fmt: skip
    rest = (mini.clip, mini.decoder, "cat") if node == "LDZNetSegment" else ()
    options = {"latent": {"samples": torch.zeros(1, 16, 16, 16)}} if rest else {}
    with pytest.raises(core("errors").InputError, match=r"family Flux, .*Stable Diffusion 1\.x, 2\.x and SDXL"):
        pack_nodes[node].execute(flux, *rest, **options)


def test_a_vae_of_sixteen_channels_is_refused(pack_nodes, mini, core):
    vae = SimpleNamespace(encode=lambda image: torch.zeros(1, 16, image.shape[1] // 8, image.shape[2] // 8))
    with pytest.raises(core("errors").InputError, match=r"VAE makes latents of shape \[1, 16, 32, 32\].*came with"):
        pack_nodes["LDZNetSegment"].execute(mini.model, mini.clip, mini.decoder, "cat", image=park(), vae=vae)


def test_a_latent_of_sixteen_channels_is_refused(pack_nodes, mini, core):
    with pytest.raises(core("errors").InputError, match=r"the latent is of shape \[1, 16, 8, 8\]"):
        latent = {"samples": torch.zeros(1, 16, 8, 8)}
        pack_nodes["LDZNetSegment"].execute(mini.model, mini.clip, mini.decoder, "cat", latent=latent)


@pytest.mark.parametrize("row", [[(3, 1.0), (1, 1.0)], [(3, 1.0), (1, 1.0), (0, 1.0)], [(1, 1.0)]])
def test_a_clip_of_another_family_is_refused(pack_nodes, mini, core, row):
    clip = SimpleNamespace(
        clip_layer=lambda layer: None, tokenize=lambda text: {"t5xxl": [row if text else row[-1:]]},
        encode_from_tokens=lambda tokens, **options: (torch.zeros(1, 77, 1024), None),
    )  # fmt: skip
    clip.clone = lambda: clip
    with pytest.raises(core("errors").InputError, match="texts of width 1024, but .* reads 96"):
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        pack_nodes["LDZNetSegment"].execute(mini.model, clip, mini.decoder, "cat", latent=latent)


def test_a_decoder_for_another_prediction_is_refused(pack_nodes, mini, core):
    sampling = core("backbones.comfy_model").model_sampling.EPS
    model = mini.model.clone()
    base = type(mini.model.get_model_object("model_sampling"))
    discrete = next(c for c in base.__mro__ if c.__name__ == "ModelSamplingDiscrete")
    model.add_object_patch("model_sampling", type("Eps", (discrete, sampling), {})(mini.model.model.model_config))
    with pytest.raises(core("errors").InputError, match="prediction v, but .* is eps"):
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        pack_nodes["LDZNetSegment"].execute(model, mini.clip, mini.decoder, "cat", latent=latent)
