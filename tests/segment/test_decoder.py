"""Masks by a decoder: shapes, sharing of features, determinism, refusals."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

from ldznet_core import InputError, Segmenter, load_backbone, load_decoder
from ldznet_core.decoders.paper_checkpoint import TEMPLATES
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.segment.protocol import authors_size

PHRASES = ["cat", "red apple"]


@pytest.fixture(scope="module")
def backbone(made):
    return load_backbone(made / "mini.safetensors")


@pytest.fixture(scope="module", params=["ldznet", "znet", "rgbnet"])
def decoder(made, request):
    return load_decoder(made / f"{request.param}.safetensors")


@pytest.fixture(scope="module")
def ldznet(made):
    return load_decoder(made / "ldznet.safetensors")


@pytest.fixture
def passes(backbone, monkeypatch):
    """The number of rows of each UNet pass that is made."""
    rows, extract = [], backbone.extract
    monkeypatch.setattr(backbone, "extract", lambda z, *a, **k: rows.append(len(z)) or extract(z, *a, **k))
    return rows


def images(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def test_masks_have_the_images_size_one_a_phrase(backbone, decoder):
    masks = Segmenter(backbone, decoder)(images(2, 50, 90, 3), PHRASES)
    assert masks.shape == (2, 2, 50, 90) and masks.dtype == torch.float32
    assert 0 <= masks.min() and masks.max() <= 1


# Random weights over groups of one channel make much of rounding: batches agree to this, not better.
ROUNDING = 5e-3


def test_each_image_and_phrase_is_answered_for_itself(backbone, decoder):
    batch = images(2, 64, 64, 3)
    both = Segmenter(backbone, decoder)(batch, PHRASES)
    for row in range(2):
        for i, phrase in enumerate(PHRASES):
            alone = Segmenter(backbone, decoder)(batch[row : row + 1], [phrase])
            assert torch.allclose(both[row, i], alone[0, 0], atol=ROUNDING)
    assert (both[0] - both[1]).abs().max() > 10 * ROUNDING and (both[:, 0] - both[:, 1]).abs().max() > ROUNDING


def test_many_phrases_are_answered_as_few_are(backbone, ldznet):
    image = images(1, 64, 64, 3)
    many = Segmenter(backbone, ldznet)(image, PHRASES * 6)
    few = Segmenter(backbone, ldznet)(image, PHRASES)
    assert torch.allclose(many, few.repeat(1, 6, 1, 1), atol=ROUNDING)


def test_the_seed_and_the_timestep_decide(backbone, ldznet):
    segment, image = Segmenter(backbone, ldznet), images(1, 64, 64, 3)
    same = segment(image, PHRASES, seed=3)
    assert torch.equal(same, segment(image, PHRASES, seed=3))
    assert not torch.equal(same, segment(image, PHRASES, seed=4))
    assert not torch.equal(same, segment(image, PHRASES, seed=3, timestep=300))


def trained_under(decoder, *conditions):
    """The same decoder, with another declaration of the texts that its features were trained under."""
    other = copy.copy(decoder)
    other.info = replace(decoder.info, conditions=conditions)
    return other


def test_by_default_features_are_read_as_the_decoder_was_trained_at_least_cost(backbone, ldznet, passes):
    image, phrases = images(1, 64, 64, 3), PHRASES * 4
    masks = Segmenter(backbone, trained_under(ldznet, "phrase", "empty"))(image, phrases)
    assert passes == [1] and torch.equal(masks, Segmenter(backbone, ldznet, "empty")(image, phrases))
    passes.clear()
    masks = Segmenter(backbone, trained_under(ldznet, "phrase"))(image, phrases)
    assert passes == [8] and torch.equal(masks, Segmenter(backbone, ldznet, "phrase")(image, phrases))
    assert Segmenter(backbone, trained_under(ldznet, "phrase", "empty"), authors=True).text == "phrase"


def test_a_large_batch_is_read_a_few_images_a_pass(backbone, ldznet, passes):
    batch, phrases = images(11, 64, 64, 3), ["cat", "red apple", "apple"] * 3
    together = Segmenter(backbone, ldznet, "empty")(batch, phrases)
    assert passes == [8, 3]
    alone = Segmenter(backbone, ldznet, "empty")(batch[9:10], phrases)
    assert torch.allclose(together[9:10], alone, atol=ROUNDING)


def test_no_images_give_no_masks(backbone, decoder):
    segment = Segmenter(backbone, decoder)
    assert segment(torch.zeros(0, 50, 90, 3), PHRASES).shape == (0, 2, 50, 90)
    assert segment.predict_latent(torch.zeros(0, 4, 8, 9), PHRASES).masks.shape == (0, 2, 64, 72)


def test_a_decoder_of_pixels_is_not_given_latents(backbone, made):
    rgbnet = load_decoder(made / "rgbnet.safetensors")
    with pytest.raises(InputError, match="rgbnet reads pixels, not latents"):
        Segmenter(backbone, rgbnet).predict_latent(torch.zeros(1, 4, 8, 8), PHRASES)


@pytest.mark.parametrize("damage", ["vae", "latents", "captured", "decoder"])
def test_what_is_not_finite_is_refused_wherever_it_begins(backbone, ldznet, monkeypatch, damage):
    segment, image, z = Segmenter(backbone, ldznet), images(1, 64, 64, 3), torch.zeros(1, 4, 8, 8)
    if damage == "vae":
        monkeypatch.setattr(backbone, "encode", lambda image: torch.full((1, 4, 8, 8), torch.inf))
        ask = partial(segment.predict, image, PHRASES)
    elif damage == "latents":
        ask = partial(segment.predict_latent, z.fill_(torch.nan), PHRASES)
    elif damage == "captured":
        features = backbone.extract(z, backbone.embed([""]), ldznet.taps, conditioning="empty")
        maps = tuple(torch.full_like(one, torch.nan) for one in features.maps)
        ask = partial(segment.predict_latent, z, PHRASES, captured=replace(features, maps=maps))
    else:
        logits = torch.full((len(PHRASES), 1, 64, 64), torch.nan)
        monkeypatch.setattr(ldznet, "predict", lambda *inputs: (logits, None))
        ask = partial(segment.predict, image, PHRASES)
    with pytest.raises(InputError, match="not finite"):
        ask()


@pytest.mark.parametrize(
    ("z", "words"),
    [
        (torch.zeros(4, 8, 8), r"got torch.float32 \[4, 8, 8\]"),
        (torch.zeros(1, 4, 0, 8), r"got torch.float32 \[1, 4, 0, 8\]"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.int64), "expected latents as float"),
    ],
)
def test_what_is_no_latent_is_refused(backbone, ldznet, z, words):
    with pytest.raises(InputError, match=words):
        Segmenter(backbone, ldznet).predict_latent(z, PHRASES)


@pytest.mark.parametrize(("text", "rows"), [("phrase", [2, 2]), ("caption", [2]), ("empty", [2])])
def test_only_phrase_features_cost_a_row_a_phrase(backbone, ldznet, passes, text, rows):
    Segmenter(backbone, ldznet, text=text)(images(2, 64, 64, 3), PHRASES, caption="a cat")
    assert passes == rows


def test_captured_features_save_the_pass(backbone, ldznet, passes):
    z = backbone.encode(images(1, 64, 64, 3))
    features = backbone.extract(z, backbone.embed([""]), ldznet.taps, conditioning="empty")
    passes.clear()
    shared = Segmenter(backbone, ldznet).predict_latent(z, PHRASES, captured=features)
    assert passes == []
    alone = Segmenter(backbone, ldznet, text="empty").predict_latent(z, PHRASES)
    assert torch.allclose(shared.masks, alone.masks, atol=ROUNDING)


def test_capturing_does_not_change_what_is_drawn(backbone, ldznet):
    plain, nothing = backbone.sample("a cat", 64, 64, seed=2)
    drawn, features = backbone.sample("a cat", 64, 64, seed=2, taps=ldznet.taps)
    assert nothing is None and torch.equal(plain, drawn)
    assert features.taps == ldznet.taps and abs(features.timestep - 400) < 25 and features.text == "caption"


def test_what_is_kept_stays(backbone):
    z, _ = backbone.sample("a cat", 64, 64, seed=2)
    anew = torch.zeros(1, 1, 8, 8)
    anew[..., :4] = 1
    other, _ = backbone.sample("a cat", 64, 64, seed=5, keep=(z, anew))
    assert torch.equal(other[..., 4:], z[..., 4:])
    assert not torch.equal(other[..., :4], z[..., :4])


@pytest.mark.parametrize(
    ("phrases", "options", "message"),
    [
        ([], {}, "no phrase"),
        (["cat", "  "], {}, "phrase 2 is empty"),
        (["cat"], {"timestep": 1000}, "timestep 1000 is outside 0..999"),
    ],
)
def test_bad_questions_are_refused(backbone, ldznet, phrases, options, message):
    with pytest.raises(InputError, match=message):
        Segmenter(backbone, ldznet)(images(1, 64, 64, 3), phrases, **options)


def test_a_decoder_of_another_family_is_refused_with_both_named(backbone, ldznet):
    wide = MaskDecoder(DecoderConfig("znet", replace(ldznet.decoder_config.unet, context_dim=64)))
    with pytest.raises(InputError, match="context width 64, but that of test is 32"):
        Segmenter(backbone, wide)
    other = MaskDecoder(ldznet.decoder_config)
    other.info = replace(ldznet.info, prediction="v")
    with pytest.raises(InputError, match="prediction v, but that of test is eps"):
        Segmenter(backbone, other)


def test_samples_are_averaged_over_seeds(backbone, ldznet):
    image = images(1, 64, 64, 3)
    alone = [Segmenter(backbone, ldznet)(image, PHRASES, seed=seed) for seed in (5, 6, 7)]
    together = Segmenter(backbone, ldznet, samples=3)(image, PHRASES, seed=5)
    assert torch.allclose(together, sum(alone) / 3, atol=1e-5)


def test_samples_cost_a_decoder_without_features_nothing(backbone, made, passes):
    znet = load_decoder(made / "znet.safetensors")
    image = images(1, 64, 64, 3)
    assert torch.equal(Segmenter(backbone, znet, samples=9)(image, PHRASES), Segmenter(backbone, znet)(image, PHRASES))
    assert passes == []


def test_the_authors_way_draws_everything_from_the_seed(backbone, ldznet, monkeypatch):
    sizes, seeds, timesteps, texts = set(), set(), [], []
    encode, extract, embed = backbone.encode, backbone.extract, backbone.embed
    monkeypatch.setattr(ldznet, "info", replace(ldznet.info, templates=TEMPLATES, pixels=128 * 128))
    monkeypatch.setattr(
        backbone, "encode", lambda x, seed=None: (sizes.add(x.shape[1:3]), seeds.add(seed)) and encode(x, seed)
    )
    monkeypatch.setattr(backbone, "embed", lambda asked: texts.extend(asked) or embed(asked))
    monkeypatch.setattr(
        backbone, "extract", lambda *a, timestep, **k: timesteps.append(timestep) or extract(*a, timestep=timestep, **k)
    )
    segment, image = Segmenter(backbone, ldznet, authors=True, samples=20), images(1, 130, 190, 3)
    masks = segment(image, PHRASES, seed=1)
    assert masks.shape == (1, 2, 130, 190)
    assert len(seeds) == 20 and sizes == {(64, 128)}
    assert all(300 <= t < 500 for t in timesteps) and len(set(timesteps)) > 10
    assert set(texts) <= {t.format(p) for t in TEMPLATES for p in PHRASES} and len(set(texts)) > 10
    assert torch.equal(masks, segment(image, PHRASES, seed=1))
    assert not torch.equal(masks, segment(image, PHRASES, seed=2))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((384, 384), (384, 384)), ((480, 640), (320, 384)), ((1080, 1920), (256, 512)), ((400, 600), (256, 448))],
)
def test_the_authors_sizes(shape, expected):
    assert authors_size(*shape, area=384 * 384) == expected


def test_the_authors_sizes_have_no_room_for_a_very_narrow_picture():
    with pytest.raises(InputError, match="too narrow for the authors' sizes"):
        authors_size(10, 600, area=384 * 384)
