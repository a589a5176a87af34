"""The miniature transformer: its network, its file and its backbone, on random weights."""

import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from studio import Studio, hooks

from ldznet_core.backbones.load import load_backbone
from ldznet_core.checkpoints import mmdit
from ldznet_core.errors import InputError
from ldznet_core.networks.mmdit import MMDiT, MMDiTConfig, narrow, widen, widened
from ldznet_core.networks.schedule import Flow
from ldznet_core.segment.methods import decoder_free

QKV = "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"


def random_transformer(**sizes) -> MMDiT:
    """A transformer whose every weight takes part: an untrained one has zeros where streams are gated."""
    torch.manual_seed(1)
    network = MMDiT(MMDiTConfig(width=64, blocks=2, table=16, **sizes))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def weights(made):
    """The random miniature's folder with a random transformer in it."""
    shared = load_backbone(made / "mini.safetensors").model
    narrow_one = random_transformer(channels=4, patch=1, context_dim=32)
    about = {"name": "mini-dit", "shares": mmdit.signature(shared), "tokens": 8, "size": 64, "nouns": ["cat", "apple"]}
    mmdit.write(widened(narrow_one.state_dict()), about, made / "mini-dit.safetensors", torch.float32)
    return made


@pytest.fixture(scope="module")
def backbone(weights):
    return load_backbone(weights / "mini-dit.safetensors")


def test_widening_keeps_lengths_and_is_undone_by_narrowing():
    z = torch.tensor([[[[2.0]], [[4.0]], [[-6.0]], [[0.0]]]])
    wide = widen(z)
    assert wide.shape == (1, 16, 2, 2)
    assert wide[0, :4, 0, 0].tolist() == [1, 2, -3, 0]
    assert wide.square().sum() == z.square().sum()
    assert torch.equal(narrow(wide), z)
    assert narrow(torch.ones(1, 16, 2, 2)).flatten().tolist() == [2] * 4


def test_a_widened_transformer_computes_what_the_narrow_one_does_and_reads_no_other_direction():
    small = random_transformer(channels=4, patch=1, context_dim=8)
    large = random_transformer(context_dim=8)
    large.load_state_dict(widened(small.state_dict()))
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, 6, 8, generator=generator)
    context, timesteps = torch.randn(2, 5, 8, generator=generator), torch.tensor([100.0, 700.0])
    other = torch.randn(2, 16, 12, 16, generator=generator)
    other = other - widen(narrow(other))
    with torch.no_grad():
        expected = widen(small(z, timesteps, context))
        assert torch.allclose(large(widen(z), timesteps, context), expected, atol=1e-5)
        assert torch.allclose(large(widen(z) + other, timesteps, context), expected, atol=1e-5)


def test_a_latent_larger_than_the_position_table_or_of_half_a_patch_is_refused():
    network, context = random_transformer(context_dim=8), torch.zeros(1, 3, 8)
    with pytest.raises(ValueError, match="17 x 2 patches are more than the 16 x 16"):
        network(torch.zeros(1, 16, 34, 4), torch.zeros(1), context)
    with pytest.raises(ValueError, match="a latent of 3 x 4 is not whole patches of 2"):
        network(torch.zeros(1, 16, 3, 4), torch.zeros(1), context)


def test_flow_is_undone_by_what_a_true_velocity_says():
    z, noise, timesteps = torch.tensor([[[[2.0]]]]), torch.tensor([[[[-1.0]]]]), torch.tensor([250])
    flow = Flow()
    z_t = flow.add_noise(z, noise, timesteps)
    assert z_t.item() == 0.75 * 2 - 0.25
    clean, rest = flow.split(noise - z, z_t, timesteps)
    assert (clean.item(), rest.item()) == (2, -1)


def test_sampling_with_a_true_velocity_ends_at_the_picture():
    z, start = torch.full((1, 4, 2, 2), 0.5), torch.full((1, 4, 2, 2), 3.0)
    *_, (_, drawn) = Flow().ddim(lambda z_t, t: (z_t - z) / (t[0] / 1000).clamp(min=1e-3), start, Flow().steps(4))
    assert torch.allclose(drawn, z, atol=1e-2)


def test_contexts_are_short_and_longer_texts_as_long_as_they_are(backbone):
    assert backbone.embed(["cat"]).context.shape == (1, 8, 32)
    assert backbone.embed(["cat", "cat " * 9]).context.shape == (2, 11, 32)
    assert backbone.embed(["cat " * 99]).context.shape == (1, 77, 32)
    short, long = backbone.embed(["red cat"]), backbone.embed(["red cat", "cat " * 9])
    assert torch.allclose(short.context[0], long.context[0, :8], atol=1e-5)


def test_it_draws_the_same_from_the_same_seed(backbone):
    z, recorded = backbone.sample("a red cat", 64, 128, seed=3)
    assert z.shape == (1, 4, 8, 16) and recorded is None
    assert torch.equal(z, backbone.sample("a red cat", 64, 128, seed=3)[0])
    assert not torch.allclose(z, backbone.sample("an apple", 64, 128, seed=3)[0])


def test_words_change_the_estimate_of_the_clean_latent(backbone):
    z = torch.zeros(2, 4, 8, 8)
    clean = backbone.denoise(z, backbone.embed(["cat", "apple"]), timestep=500)
    assert clean.isfinite().all() and not torch.allclose(clean[0], clean[1])


def test_attention_finds_the_words_of_each_phrase_and_leaves_no_hook(backbone):
    concepts = backbone.concepts(["red cat", "apple"])
    assert concepts.tokens == ((1, 2), (4,), (5,)) and concepts.length == 8  # start, red, cat, comma, apple, full stop
    z = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    first, last = backbone.attend(z, concepts, (0, 1), timestep=500)
    assert first.share.shape == (2, 15, 3) and first.image.shape == (2, 15, 64) and first.text.shape == (2, 3, 64)
    assert torch.equal(backbone.attend(z, concepts, (1,), timestep=500)[0].share, last.share)
    assert hooks(backbone.model.transformer) == 0


def test_concepts_that_ride_along_change_nothing_of_the_picture_under_its_caption(backbone):
    z = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    alone, riding = backbone.concepts(["cat"]), backbone.concepts(["red cat", "apple"], "cat")
    assert riding.caption == 8 and riding.tokens == ((9, 10), (12,), (13,)) and riding.length == 16
    alone = replace(alone, prompt=backbone.embed(["cat"]))
    plain, found = (backbone.attend(z, one, (0, 1), timestep=500) for one in (alone, riding))
    for one, other in zip(plain, found, strict=True):
        assert torch.allclose(one.image, other.image, atol=1e-5)
    apart = backbone.attend(z, backbone.concepts(["red cat", "apple"]), (0, 1), timestep=500)
    assert not torch.allclose(apart[1].image, found[1].image, atol=1e-3)
    assert found[1].share.shape == (2, 15, 3) and hooks(backbone.model.transformer) == 0
    find = decoder_free(backbone, "attention").predict_latent
    assert not torch.equal(find(z, ["cat"]).masks, find(z, ["cat"], caption="apple").masks)


def test_attention_gives_masks_and_presence(backbone):
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    prediction = decoder_free(backbone, "attention").predict(image, ["cat", "apple"])
    assert prediction.masks.shape == (1, 2, 64, 64) and prediction.presence.shape == (1, 2)


def test_pictures_larger_than_the_position_table_are_refused(backbone):
    with pytest.raises(InputError, match="mini-dit takes pictures of up to 128 pixels a side, this one has 136x64"):
        backbone.denoise(torch.zeros(1, 4, 8, 17), backbone.embed(["cat"]), timestep=500)


def test_a_transformer_is_refused_beside_another_vae_or_text_encoder(backbone, weights):
    about, file = {**backbone.model.about, "shares": "0123456789abcdef"}, weights / "other.safetensors"
    mmdit.write(backbone.model.transformer.state_dict(), about, file)
    with pytest.raises(InputError, match="other.safetensors was trained beside another VAE and text encoder"):
        load_backbone(file)


def test_a_checkpoint_of_stable_diffusion_3_is_named_as_one(tmp_path):
    save_file({QKV: torch.zeros(1)}, tmp_path / "sd3.safetensors")
    with pytest.raises(InputError, match="sd3.safetensors is a checkpoint of Stable Diffusion 3"):
        load_backbone(tmp_path / "sd3.safetensors")


def test_a_file_without_some_of_its_weights_is_refused(backbone, weights):
    tensors = backbone.model.transformer.state_dict()
    del tensors["t_embedder.mlp.0.bias"]
    mmdit.write(tensors, backbone.model.about, weights / "part.safetensors")
    with pytest.raises(InputError, match="part.safetensors is no whole transformer of the family of SD 3"):
        load_backbone(weights / "part.safetensors")


# ---- in ComfyUI ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(core, weights):
    """MODEL, CLIP and VAE of the random transformer."""
    return core("backbones.comfy_mini_dit").load_mini_dit(weights)


def test_comfyuis_class_of_stable_diffusion_3_holds_the_weights_and_computes_what_ours_does(parts, backbone):
    theirs, ours = parts[0].model.diffusion_model, backbone.model.transformer
    assert type(theirs).__mro__[1].__name__ == "MMDiT" and parts[0].model.latent_format.latent_channels == 16
    assert {name for name, _ in theirs.named_parameters()} <= set(ours.state_dict())
    generator = torch.Generator().manual_seed(0)
    z, context = torch.randn(2, 16, 8, 12, generator=generator), torch.randn(2, 9, 32, generator=generator)
    timesteps = torch.tensor([20.0, 900.0])
    expected = ours(z, timesteps, context)
    assert torch.allclose(theirs(z, timesteps, context=context), expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("text", ["red cat", "", "cat " * 12])
def test_comfyuis_contexts_are_ours(parts, backbone, text):
    theirs = parts[1].encode_from_tokens(parts[1].tokenize(text))
    ours = backbone.embed([text]).context
    assert theirs.shape == ours.shape and torch.allclose(theirs, ours, atol=1e-5)


@torch.inference_mode()
def test_comfyuis_vae_gives_8_pixels_to_a_position_and_its_latents_are_ours_widened(parts, backbone):
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    small = torch.nn.functional.avg_pool2d(picture.movedim(-1, 1), 2)
    torch.manual_seed(0)  # older versions of ComfyUI encode to a sample
    latent = parts[2].encode(picture)
    torch.manual_seed(0)
    z = parts[2].first_stage_model.inner.encode(small * 2 - 1) * backbone.scale
    assert latent.shape == (1, 16, 8, 12)
    assert torch.allclose(parts[0].model.process_latent_in(latent), widen(z), atol=1e-4)
    pixels = parts[2].first_stage_model.inner.decode(z / backbone.scale)
    pixels = torch.nn.functional.interpolate(pixels, scale_factor=2.0, mode="bilinear").movedim(1, -1)
    assert torch.allclose(parts[2].decode(latent), (pixels / 2 + 0.5).clamp(0, 1), atol=1e-4)


@torch.inference_mode()
def test_pictures_of_half_a_patch_keep_their_size_in_comfyui(parts):
    latent = parts[2].encode(torch.rand(1, 72, 40, 3, generator=torch.Generator().manual_seed(0)))
    assert latent.shape == (1, 16, 9, 5)
    assert parts[2].decode(latent).shape == (1, 72, 40, 3)


@pytest.fixture
def loaded(pack_nodes, core, weights, monkeypatch):
    """MODEL, CLIP, VAE and DECODER of Load Miniature with dit, its file there."""
    load = sys.modules[pack_nodes["LDZNetLoadMini"].__module__]
    dit = core("backbones.comfy_mini_dit").load_mini_dit
    monkeypatch.setitem(load.NETWORKS, "dit", lambda: dit(weights))
    with torch.inference_mode():
        return Studio(*pack_nodes["LDZNetLoadMini"].execute(network="dit").args)


@torch.inference_mode()
def test_stock_nodes_draw_with_it_and_segment_without_decoder_finds_words_in_the_drawing(loaded, pack_nodes):
    if not hasattr(sys.modules["comfy.ldm.modules.attention"], "wrap_attn"):
        pytest.skip("this version of ComfyUI does not show a transformer's attention")
    drawn = loaded.sample(steps=2, latent={"samples": torch.zeros(1, 16, 16, 16)})
    assert drawn["samples"].shape == (1, 16, 16, 16)
    image = loaded.vae.decode(drawn["samples"])
    assert image.shape == (1, 128, 128, 3)
    find = pack_nodes["LDZNetAttentionMask"].execute
    masks = find(model=loaded.model, clip=loaded.clip, vae=loaded.vae, text="cat | apple", image=image).args[0]
    assert masks.shape == (2, 128, 128) and masks.isfinite().all()


@torch.inference_mode()
def test_comfyuis_attention_to_words_is_ours(loaded, core, backbone):
    if not hasattr(sys.modules["comfy.ldm.modules.attention"], "wrap_attn"):
        pytest.skip("this version of ComfyUI does not show a transformer's attention")
    theirs = core("backbones.comfy_dit").ComfyTransformerBackbone(loaded.model, loaded.clip, loaded.vae)
    names = ["red cat", "apple"]
    assert theirs.concepts(names).tokens == backbone.concepts(names).tokens
    z = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    shown = theirs.attend(widen(z), theirs.concepts(names), (0, 1), timestep=500, seed=None)
    ours = backbone.attend(z, backbone.concepts(names), (0, 1), timestep=500, seed=None)
    for one, other in zip(shown, ours, strict=True):
        assert torch.allclose(one.share, other.share, atol=1e-5)
        assert torch.allclose(one.image, other.image, atol=1e-4 * float(other.image.abs().max()))


@torch.inference_mode()
def test_latents_larger_than_the_position_table_are_refused_in_comfyui(loaded, pack_nodes):
    if not hasattr(sys.modules["comfy.ldm.modules.attention"], "wrap_attn"):
        pytest.skip("this version of ComfyUI does not show a transformer's attention")
    find, image = pack_nodes["LDZNetAttentionMask"].execute, torch.zeros(1, 40, 1200, 3)
    with pytest.raises(Exception, match="takes latents of up to 32 positions a side, this one has .*x8"):
        find(model=loaded.model, clip=loaded.clip, vae=loaded.vae, text="cat", image=image)


@torch.inference_mode()
def test_a_decoder_of_the_unet_is_refused_with_it(loaded, pack_nodes):
    with pytest.raises(Exception, match="the loaded model is of family .* which has no such UNet"):
        pack_nodes["LDZNetSegment"].execute(
            model=loaded.model, clip=loaded.clip, vae=loaded.vae, decoder=loaded.decoder, text="cat",
            image=torch.zeros(1, 64, 64, 3),
        )


def test_load_miniature_says_where_the_transformer_is_looked_for(pack_nodes, core, monkeypatch, tmp_path):
    load = core("backbones.comfy_mini_dit").load_mini_dit
    with pytest.raises(Exception, match="there is no miniature transformer at .*mini-dit.safetensors"):
        load(tmp_path)
