"""Masks without a decoder, on the real engine and the bundled miniature. The host is left as it was."""

import gc
import logging
from dataclasses import replace

import pytest
import torch
from studio import centre, hooks, is_mask, park, unlike

EIGHT = "panda | pumpkin | cat | red apple | a very small star | bus | grass | ladybug"

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


# --- after generation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["attention", "noise"])
def test_a_latent_is_read_as_the_image_that_it_was_encoded_from(find, mini, method):
    image = park()
    torch.manual_seed(0)  # older engines sample the posterior
    latent = {"samples": mini.vae.encode(image)}
    of_image, of_latent = find(image=image, method=method)[0], find(latent=latent, vae=None, method=method)[0]
    assert is_mask(of_latent, 2, 256, 256) and of_latent.amax((1, 2)).min() > 0.5
    assert torch.allclose(of_image, of_latent, atol=1e-4)


def test_with_image_and_latent_the_latent_is_read_and_the_image_gives_the_size(find, mini):
    latent = {"samples": mini.vae.encode(park())}
    image = park().repeat_interleave(2, 1).repeat_interleave(2, 2)
    masks, union, overlay, _ = find(image=image, latent=latent, vae=None)
    assert is_mask(masks, 2, 512, 512) and is_mask(union, 1, 512, 512) and overlay.shape == (1, 512, 512, 3)
    small = find(latent=latent)[0]
    larger = torch.nn.functional.interpolate(small[None], scale_factor=2, mode="bilinear")[0]
    assert torch.allclose(masks, larger, atol=1e-4)


def test_things_are_found_where_they_are(find, mini, pack_nodes):
    found = find("panda", image=park())[0][0] > 0.5
    decoded = pack_nodes["LDZNetSegment"].execute(
        mini.model, mini.clip, mini.decoder, "panda", image=park(), vae=mini.vae
    ).args[0][0] > 0.5  # fmt: skip
    assert (found & decoded).sum() / (found | decoded).sum() > 0.7


def test_masks_come_one_a_phrase_and_image_the_first_image_first(find):
    masks, union, overlay, _ = find(image=torch.cat([park(), park().flip(2)]))
    assert is_mask(masks, 4, 256, 256) and is_mask(union, 2, 256, 256) and overlay.shape == (2, 256, 256, 3)
    panda, pumpkin, flipped_panda, flipped_pumpkin = (centre(mask)[1] for mask in masks)
    assert panda == pytest.approx(1 - flipped_panda, abs=0.1) and panda < 0.4
    assert pumpkin == pytest.approx(1 - flipped_pumpkin, abs=0.1) and pumpkin > 0.6
    assert torch.equal(union[1], masks[2:].amax(0))


@pytest.mark.parametrize("method", ["attention", "noise"])
def test_eight_phrases_get_the_masks_that_each_gets_alone(find, method):
    latent = {"samples": torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(3))}
    together = find(EIGHT, latent=latent, method=method)[0]
    alone = torch.cat([find(phrase, latent=latent, method=method)[0] for phrase in EIGHT.split("|")])
    assert len(together) == 8 and torch.allclose(together, alone, atol=1e-4)


def test_any_number_of_phrases_costs_one_pass_an_image_and_one_on_noise(find, passes, noises):
    find(EIGHT, image=park().repeat(3, 1, 1, 1))
    assert passes == [noises, 1, 1, 1]


@pytest.mark.parametrize("method", ["attention", "noise"])
@pytest.mark.parametrize("shape", [(72, 200), (37, 41), (8, 8), (1, 300)])
def test_images_of_any_shape_get_masks_of_their_shape(find, method, shape):
    masks, union, overlay, _ = find("panda", image=torch.rand(1, *shape, 3), method=method)
    assert is_mask(masks, 1, *shape) and is_mask(union, 1, *shape)
    assert overlay.shape == (1, *shape, 3) and overlay.isfinite().all()


@pytest.mark.parametrize("spread", ["auto", "objects", "stuff", "none"])
@pytest.mark.parametrize("sides", [(17, 21), (9, 40), (3, 5), (32, 32)])
def test_latents_of_any_shape_get_masks_of_eight_times_that_size(find, sides, spread):
    latent = {"samples": torch.randn(1, 4, *sides, generator=torch.Generator().manual_seed(1))}
    assert is_mask(find("panda", latent=latent, spread=spread)[0], 1, sides[0] * 8, sides[1] * 8)


def test_pictures_that_are_not_square_are_not_turned(find):
    wide = torch.nn.functional.pad(park(), (0, 0, 0, 256), value=0.5)
    row, column = centre(find("panda", image=wide)[0][0])
    square = centre(find("panda", image=park())[0][0])
    assert row == pytest.approx(square[0], abs=0.12) and column * 2 == pytest.approx(square[1], abs=0.12)


def test_the_same_question_has_the_same_answer_and_what_can_be_set_matters(find):
    masks = find(image=park())[0]
    assert torch.equal(masks, find(image=park())[0])
    other = [{"seed": 1}, {"timestep": 400}, {"method": "noise"}, {"spread": "stuff"}, {"caption": "a panda on grass"}]
    assert not any(torch.equal(masks, find(image=park(), **options)[0]) for options in other)


def test_previews_show_overlay_and_masks(pack_nodes, mini):
    from comfy_api.latest import ui

    if not hasattr(ui, "PreviewImage"):
        pytest.skip("this engine's comfy_api has no previews; with COMFYUI_PATH they are tested")
    out = pack_nodes["LDZNetAttentionMask"].execute(mini.clip, "panda\npumpkin", mini.model, park(), vae=mini.vae)
    assert len(out.ui.as_dict()["images"]) == 3


@pytest.mark.parametrize("method", ["attention", "noise"])
def test_an_inpainting_checkpoint_of_nine_channels_works(core, made, find, method):
    comfy_mini, ldm, unet = core("backbones.comfy_mini"), core("checkpoints.ldm"), core("networks.unet")
    torch.manual_seed(0)
    tokenizer = core("checkpoints.tokenizer").ClipTokenizer.from_folder(made / "tokenizer")
    model = ldm.read(made / "mini.safetensors", tokenizer)
    model.unet = unet.UNet(replace(model.unet.config, in_channels=9)).eval()
    clip, latent = comfy_mini.load_clip(model, made / "tokenizer"), {"samples": torch.randn(1, 4, 8, 8)}
    masks = find("cat", model=comfy_mini.load_model(model), clip=clip, vae=None, latent=latent, method=method)[0]
    assert is_mask(masks, 1, 64, 64)


# --- what counts as there --------------------------------------------------------------------------------


FLAT = torch.tensor([0.2, 0.6, 0.3]).expand(1, 256, 256, 3)  # a green wall


def test_presence_0_keeps_every_mask_and_much_presence_none(find):
    kept, gone = find(EIGHT, image=park())[0], find(EIGHT, image=park(), presence=20.0)[0]
    assert kept.amax((1, 2)).min() > 0.5 and torch.equal(gone, torch.zeros_like(kept))


def test_presence_is_told_and_keeps_a_mask_or_zeroes_it(find, caplog):
    with caplog.at_level(logging.INFO, "LD-ZNet"):
        kept = find(EIGHT, image=park())[0]
    line = next(r.getMessage() for r in caplog.records if r.getMessage().startswith("presence: "))
    told = [float(part.rsplit(" ", 1)[1]) for part in line.removeprefix("presence: ").split(", ")]
    below, above = max(zip(sorted(told), sorted(told)[1:], strict=False), key=lambda pair: pair[1] - pair[0])
    between = (below + above) / 2  # in the widest gap, because what is told is rounded
    gated = find(EIGHT, image=park(), presence=between)[0]
    for mask, whole, presence in zip(gated, kept, told, strict=True):
        assert torch.equal(mask, whole if presence >= between else torch.zeros_like(whole))


@pytest.mark.parametrize("method", ["attention", "noise"])
@pytest.mark.parametrize("picture", ["flat", "black", "white", "noise"])
def test_where_nothing_is_the_mask_is_never_the_full_frame(find, method, picture):
    pictures = {"flat": FLAT, "black": FLAT * 0, "white": FLAT * 0 + 1, "noise": torch.rand(1, 256, 256, 3)}
    masks = find("panda | sky", image=pictures[picture], method=method)[0]
    assert is_mask(masks, 2, 256, 256) and (masks > 0.5).float().mean((1, 2)).max() < 0.8  # pandas are white


# --- the host is left as it was --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["attention", "noise"])
def test_the_users_model_draws_the_same_before_and_after_and_after_interrupts(
    mini, find, watched, interrupted, method
):
    before = mini.sample()["samples"]

    def unchanged():
        return hooks(mini.unet) == 0 and torch.equal(mini.sample()["samples"], before)

    find(image=park(), method=method)
    assert unchanged()
    interrupted(lambda: find(image=park().repeat(2, 1, 1, 1), method=method), after=3)
    assert unchanged()
    model, capture = watched
    latent = mini.sample(model)
    assert torch.equal(latent["samples"], before)
    find(capture=capture, latent=latent, method=method)
    assert unchanged()
    interrupted(lambda: find(capture=capture, latent=latent, method=method), after=1)
    assert unchanged()
    assert mini.model.model_options == {"transformer_options": {}} and not mini.model.object_patches


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
def test_a_unet_in_lower_precision_is_read(find, core, dtype):
    """Weights in that type, computed as ComfyUI does where the device cannot: cast for every layer."""
    expected = find(image=park())[0]
    small = core("backbones.comfy_mini").load_mini()[0]
    for module in small.model.diffusion_model.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = True
            for name, value in list(module.named_parameters(recurse=False)):
                cast = torch.nn.Parameter(value.to(getattr(torch, dtype)), requires_grad=False)
                setattr(module, name, cast)
    masks = find(image=park(), model=small)[0]
    assert masks.amax((1, 2)).min() > 0.5 and (masks - expected).abs().mean() < 0.05


def test_thirty_runs_leave_no_more_memory_than_one(find, watched, mini):
    model, capture = watched
    latent = mini.sample(model)

    def alive():
        gc.collect()
        tensors = (thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def run_both_ways():
        find(latent=latent)
        find(capture=capture, latent=latent)

    run_both_ways()
    first, held = alive(), capture.bytes
    for _ in range(15):
        run_both_ways()
    assert alive() <= first + 2**16 and capture.bytes == held


# --- refusals: one sentence that names what was given and what to do -------------------------------------


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {"image": park()}, "no phrase was given"),
        (" | \n", {"image": park()}, "no phrase was given"),
        ("cat", {}, "connect an image or a latent"),
        ("cat", {"image": park(), "model": None}, "there is no model: connect a model, or a capture"),
        ("cat", {"image": park(), "vae": None}, "an image needs the VAE"),
        ("cat", {"image": park(), "latent": {"samples": torch.zeros(2, 4, 32, 32)}}, "1 images .* 2 latents"),
        ("cat", {"image": park(), "latent": {"samples": torch.zeros(1, 4, 32, 16)}}, "256x256 is not .* 128x256"),
        ("cat", {"latent": {"samples": torch.zeros(1, 16, 8, 8)}}, r"the latent is of shape \[1, 16, 8, 8\]"),
        ("cat", {"image": park() * 300}, "values from 0 to 300"),
    ],
)
def test_bad_input_gets_one_sentence(find, core, text, options, message):
    with pytest.raises(core("errors").InputError, match=message):
        find(text, **options)


def test_a_capture_without_a_latent_is_refused(find, watched, core):
    with pytest.raises(core("errors").InputError, match="connect the LATENT of its sampler"):
        find("cat", capture=watched[1], image=park())


def test_flux_is_refused_by_name(find, mini, core):
    import comfy.supported_models as families

    parts = {"latent_format": families.Flux.latent_format(), "model_sampling": mini.model.model.model_sampling}
    flux = unlike(mini.model, diffusion_model=torch.nn.Linear(2, 2), model_config=families.Flux({}), **parts)
    with pytest.raises(core("errors").InputError, match=r"family Flux, .*Stable Diffusion 1\.x, 2\.x and SDXL"):
        find("cat", model=flux, latent={"samples": torch.zeros(1, 16, 16, 16)})


@pytest.mark.parametrize("text", ["!!!", "?", "(", "—", "\\", "cat: (1.4)", "word " * 100])
def test_signs_brackets_and_long_texts_are_phrases_as_well(find, text):
    assert is_mask(find(text, image=park())[0], 1, 256, 256)


def test_a_phrase_of_which_no_word_is_left_is_refused(find, mini, core, monkeypatch, tmp_path):
    """ComfyUI leaves out an embedding that is not there, with a line in its log."""
    monkeypatch.setattr(mini.clip.tokenizer.clip_l, "embedding_directory", str(tmp_path))
    with pytest.raises(core("errors").InputError, match="a phrase has no words that the text encoder knows"):
        find("cat | embedding:missing", image=park())
