"""Masks without a decoder: the plan of every family, and the whole on a small model."""


import pytest
import torch
import torch.nn.functional as F
from seeded import seed_weights

from ldznet_core import InputError, load_backbone
from ldznet_core.backbones.families.unet import plan
from ldznet_core.backbones.queries import Layer, Queries
from ldznet_core.networks.unet import SD2, SDXL, UNet, UNetConfig, native_side
from ldznet_core.segment.attention import NOISES, AttentionSegmenter
from ldznet_core.segment.attention_maps import (
    cross_attention,
    self_attention,
)
from ldznet_core.segment.base import MaskPrediction
from ldznet_core.segment.methods import decoder_free

MINI = UNetConfig(model_channels=64, channel_mult=(1, 1, 2, 2), num_heads=4, context_dim=96)
ENCODER, DECODER = "input_blocks", "output_blocks"


def blocks(group) -> list[str]:
    return [layer.block for layer in group]


def test_sd1_at_512_is_asked_at_16_and_32_and_joined_at_64():
    chosen = plan(UNetConfig(), 64, 64)
    (coarse_share, coarse), (fine_share, fine) = chosen.cross
    assert (coarse_share, fine_share) == (0.7, 0.3)
    assert blocks(coarse) == [f"{ENCODER}.7", f"{ENCODER}.8", f"{DECODER}.3", f"{DECODER}.4", f"{DECODER}.5"]
    assert blocks(fine) == [f"{ENCODER}.4", f"{ENCODER}.5", f"{DECODER}.6", f"{DECODER}.7", f"{DECODER}.8"]
    assert chosen.own == Layer(f"{DECODER}.10", 0, 0) and chosen.is_finer


def test_sdxl_at_1024_is_asked_in_the_middle_of_its_deep_transformers():
    chosen = plan(SDXL, 128, 128)
    assert [(layer.block, layer.index) for layer in chosen.layers] == [
        *((f"{ENCODER}.{i}", 5) for i in (7, 8)), *((f"{DECODER}.{i}", 5) for i in (0, 1, 2)),
        *((f"{ENCODER}.{i}", 1) for i in (4, 5)), *((f"{DECODER}.{i}", 1) for i in (3, 4, 5)),
    ]  # fmt: skip
    assert chosen.own == Layer(f"{DECODER}.4", 1, 1)


def test_the_miniature_is_asked_at_its_finest_and_not_spread():
    chosen = plan(MINI, 16, 16)
    assert [layer.level for layer in chosen.layers] == [0] * 5 and chosen.cross[0][0] == 1.0 and not chosen.is_finer


def test_self_attention_is_never_read_where_its_map_would_be_huge():
    assert plan(UNetConfig(), 128, 128).own.level == 1  # 64 x 64 of an SD 1.x at 1024 px
    assert plan(SD2, 96, 96).own.level == 1
    assert plan(UNetConfig(), 64, 64).own.level == 0


def test_every_layer_of_every_plan_is_there():
    for config in (UNetConfig(), SD2, SDXL, MINI):
        with torch.device("meta"):
            unet = UNet(config)

        def find(block, unet=unet):
            return next(part for part in unet.get_submodule(block) if hasattr(part, "transformer_blocks"))

        for side in (8, 16, 48, 64, 96, 128):
            chosen = plan(config, side, side * 2)
            assert len(chosen.modules(find)) == len(chosen.layers) + 2 * (chosen.own is not None)
            for layer, keys in zip(chosen.layers, chosen.keys(find), strict=True):
                assert keys.in_features == config.context_dim
                # Each is on the level that it says: as wide as that level is.
                assert keys.out_features == config.model_channels * config.channel_mult[layer.level]


def test_families_draw_at_their_own_size():
    assert [native_side(c, p) for c, p in ((UNetConfig(), "eps"), (SD2, "eps"), (SD2, "v"), (SDXL, "eps"))] == [
        512, 512, 768, 1024,
    ]  # fmt: skip


# ---- the whole, on a small model -----------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone(made):
    return load_backbone(made / "mini.safetensors")


@pytest.fixture(scope="module")
def z():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


# To a random model a phrase makes next to no difference: what there is shows the rounding of batches of other sizes.
@pytest.mark.parametrize(("method", "close"), [("attention", 1e-4), ("noise", 0.05)])
def test_many_phrases_are_the_same_as_one_by_one(backbone, z, method, close):
    phrases = ["cat", "red apple", "apple", "red cat", "a cat", "red", "cat apple", "red red apple"]
    find = decoder_free(backbone, method, spread="objects")
    together = find.predict_latent(z, phrases)
    assert together.masks.shape == (2, 8, 64, 64) and 0 <= together.masks.min() and together.masks.max() <= 1
    for i, phrase in enumerate(phrases):
        alone = find.predict_latent(z, [phrase])
        assert (alone.masks[:, 0] - together.masks[:, i]).abs().max() < close
        if method == "attention":
            assert torch.allclose(alone.presence[:, 0], together.presence[:, i], atol=1e-3)


def test_any_number_of_phrases_takes_one_pass_an_image(backbone, z, monkeypatch):
    rows, observe = [], backbone.observe
    monkeypatch.setattr(backbone, "observe", lambda z, *a, **k: rows.append(len(z)) or observe(z, *a, **k))
    AttentionSegmenter(backbone).predict_latent(z, ["cat", "red apple", "apple"])
    assert rows == [NOISES, 1, 1]


def test_queries_that_were_kept_take_no_pass_of_the_latents(backbone, z, monkeypatch):
    chosen = plan(backbone.unet_config, 8, 8)
    empty = backbone.embed([""]).expand(2)
    outputs = backbone.observe(z, empty, chosen.modules(backbone.transformer), timestep=100, seed=0)
    expected = AttentionSegmenter(backbone).predict_latent(z, ["cat", "red apple"])
    rows, observe = [], backbone.observe
    monkeypatch.setattr(backbone, "observe", lambda z, *a, **k: rows.append(len(z)) or observe(z, *a, **k))
    queries = Queries.of(chosen, (8, 8), outputs)
    found = AttentionSegmenter(backbone).predict_latent(z, ["cat", "red apple"], captured=queries)
    assert torch.allclose(found.masks, expected.masks, atol=1e-4) and rows == [NOISES]


def test_recorded_queries_are_those_of_the_layers(backbone, z):
    unet, chosen = backbone.model.unet, plan(backbone.unet_config, 8, 8)
    kept = {}
    handles = [
        part.register_forward_hook(lambda m, args, out, name=name: kept.setdefault(name, out.clone()))
        for name, part in chosen.modules(backbone.transformer).items()
    ]
    text = backbone.embed(["cat"]).expand(2)
    with torch.inference_mode():
        unet(*backbone.noised(z, 100, 0), text.context)
    for handle in handles:
        handle.remove()
    outputs = backbone.observe(z, text, chosen.modules(backbone.transformer), timestep=100, seed=0)
    assert outputs.keys() == kept.keys() and all(torch.equal(outputs[name], kept[name]) for name in kept)
    assert not any(m._forward_hooks for m in unet.modules())


def test_attention_recomputed_is_that_of_the_layer(backbone, z):
    """What the layer puts out, from our softmax a head, its own values and its own last projection."""
    layer = backbone.transformer("output_blocks.9").transformer_blocks[0].attn2
    x, context = torch.randn(1, 64, 32), backbone.embed(["red apple"]).context
    with torch.inference_mode():
        q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(context)
        parts = []
        for a, b, c in zip(q.chunk(layer.heads, -1), k.chunk(layer.heads, -1), v.chunk(layer.heads, -1), strict=True):
            parts.append(cross_attention(a, b, 1)[:, 0] @ c)
        assert (layer.to_out(torch.cat(parts, -1)) - layer(x, context)).abs().max() < 1e-5


@pytest.mark.parametrize("method", ["attention", "noise"])
@pytest.mark.parametrize("size", [(72, 200), (1, 1), (64, 64), (300, 30)])
def test_masks_have_the_size_of_the_image(backbone, method, size):
    image = torch.rand(1, *size, 3)
    found = decoder_free(backbone, method).predict(image, ["cat"])
    assert found.masks.shape == (1, 1, *size) and found.masks.isfinite().all() and 0 < found.reach < 1
    assert torch.equal(decoder_free(backbone, method)(image, ["cat"]), found.masks)


def test_latents_of_sides_that_the_unet_cannot_halve_are_read(backbone):
    assert AttentionSegmenter(backbone).predict_latent(torch.randn(1, 4, 9, 13), ["cat"]).masks.shape == (1, 1, 72, 104)


def test_seeds_and_captions_change_masks_and_repeats_do_not(backbone, z):
    find = AttentionSegmenter(backbone)
    first = find.predict_latent(z, ["cat"]).masks
    assert torch.equal(first, find.predict_latent(z, ["cat"]).masks)
    assert not torch.equal(first, find.predict_latent(z, ["cat"], seed=1).masks)
    assert not torch.equal(first, find.predict_latent(z, ["cat"], caption="red apple").masks)
    assert not torch.equal(first, find.predict_latent(z, ["cat"], timestep=500).masks)
    assert not torch.equal(first, AttentionSegmenter(backbone, samples=3).predict_latent(z, ["cat"]).masks)
    assert not torch.equal(first, AttentionSegmenter(backbone, spread="stuff").predict_latent(z, ["cat"]).masks)


def test_a_phrase_of_too_little_presence_is_all_zero():
    found = MaskPrediction(torch.ones(1, 2, 4, 4), torch.tensor([[1.0, 3.0]]), 0.1)
    assert found.present(2.0).amax((2, 3)).tolist() == [[0, 1]] and found.present(0.0).min() == 1
    assert MaskPrediction(torch.ones(1, 1, 4, 4), None, 0.1).present(9.0).min() == 1  # noise knows no presence


def test_progress_is_told_before_every_pass_and_may_end_it(backbone):
    shares = []
    AttentionSegmenter(backbone, progress=shares.append).predict(torch.rand(3, 64, 64, 3), ["cat"])
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 and len(shares) == 3 + 1 + 3 + 1

    class Stop(Exception):
        pass

    def stop(share):
        if share > 0.5:
            raise Stop

    with pytest.raises(Stop):
        decoder_free(backbone, "noise", progress=stop).predict(torch.rand(1, 64, 64, 3), ["cat"])


@pytest.mark.parametrize("method", ["attention", "noise"])
def test_no_images_give_no_masks(backbone, method):
    find = decoder_free(backbone, method)
    found = find.predict(torch.zeros(0, 50, 90, 3), ["cat", "apple"])
    assert found.masks.shape == (0, 2, 50, 90) and found.present(2.0).shape == (0, 2, 50, 90)
    assert find.predict_latent(torch.zeros(0, 4, 8, 9), ["cat"]).masks.shape == (0, 1, 64, 72)


def test_an_answer_that_is_not_finite_is_refused():
    nan = torch.tensor([[torch.nan, 3.0]])
    with pytest.raises(InputError, match="gave a presence that is not finite"):
        MaskPrediction(torch.ones(1, 2, 4, 4), nan)
    with pytest.raises(InputError, match="gave a mask that is not finite"):
        MaskPrediction(nan[None, None])


@pytest.mark.parametrize(("method", "part"), [("attention", "observe"), ("noise", "denoise")])
def test_a_model_that_overflows_is_never_taken_for_nothing_found(backbone, z, monkeypatch, method, part):
    run = getattr(backbone, part)

    def overflow(*args, **options):
        outputs = run(*args, **options)
        if method == "noise":
            return outputs * torch.nan
        return {name: value * torch.nan for name, value in outputs.items()}

    monkeypatch.setattr(backbone, part, overflow)
    with pytest.raises(InputError, match="not finite"):
        decoder_free(backbone, method).predict_latent(z, ["cat"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda b: decoder_free(b, "magic"), "no method 'magic': choose one of attention, noise"),
        (lambda b: AttentionSegmenter(b, spread="far"), "no spread 'far': choose one of auto, objects, stuff, none"),
        (lambda b: AttentionSegmenter(b, samples=0), "0 samples cannot be averaged"),
        (lambda b: AttentionSegmenter(b).predict(torch.rand(1, 64, 64, 3), []), "no phrase was given"),
        (lambda b: AttentionSegmenter(b).predict(torch.rand(1, 64, 64, 3), ["cat", " "]), "phrase 2 is empty"),
        (lambda b: AttentionSegmenter(b).predict(torch.rand(1, 64, 64, 3), ["cat"], timestep=1000), "outside 0..999"),
    ],
)
def test_what_cannot_be_done_is_said(backbone, call, words):
    with pytest.raises(InputError, match=words):
        call(backbone)


def test_the_bundled_miniature_finds_what_is_there(made):
    from PIL import Image

    backbone = load_backbone("mini")
    picture = Image.open("docs/pictures/park.png")
    found = AttentionSegmenter(backbone).predict(picture, ["panda", "pumpkin"])
    panda, pumpkin = found.masks[0] > 0.5
    boxes = {"panda": (slice(112, 230), slice(18, 136)), "pumpkin": (slice(22, 128), slice(134, 240))}  # docs
    for mask, (rows, columns) in zip((panda, pumpkin), boxes.values(), strict=True):
        inside = mask[rows, columns].sum()
        assert inside > 0.5 * mask.sum() and inside > 0.3 * mask[rows, columns].numel()
    assert found.presence.min() > 2


def test_a_full_size_sd1_is_read_in_little_memory():
    """The arithmetic of 512 px on random queries: nothing as large as all heads of a 64 x 64 self-attention."""
    q = torch.randn(4096, 320)
    found = self_attention(q, torch.randn(4096, 320), 8)
    assert found.shape == (4096, 4096) and torch.allclose(found.sum(1), torch.ones(4096), atol=1e-4)
    assert F.softmax(q[0, :40] @ q[:, :40].T / 40**0.5, -1).isfinite().all()


def test_masks_of_a_random_sd1_layout_are_spread_to_the_fine_grid(made):
    backbone = load_backbone(made / "mini.safetensors")
    unet = seed_weights(UNet(UNetConfig(model_channels=32, num_heads=2, context_dim=32)), 3)
    backbone.model.unet = unet
    z = torch.randn(1, 4, 64, 64)
    found = AttentionSegmenter(backbone).predict_latent(z, ["cat", "red apple"])
    assert plan(unet.config, 64, 64).is_finer and found.masks.shape == (1, 2, 512, 512)
    assert found.masks.amax((2, 3)).min() > 0.9 and not torch.equal(found.masks[0, 0], found.masks[0, 1])
