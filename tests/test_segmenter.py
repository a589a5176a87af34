"""Where host, decoder and mask meet: shapes, sharing of features, determinism, refusals."""

from dataclasses import replace

import pytest
import torch

from ldznet_core import InputError, Segmenter, load_decoder, load_host
from ldznet_core.networks.decoder import DecoderConfig, MaskDecoder
from ldznet_core.official import TEMPLATES
from ldznet_core.readings import authors_size

PHRASES = ["cat", "red apple"]


@pytest.fixture(scope="module")
def host(made):
    return load_host(made / "mini.safetensors")


@pytest.fixture(scope="module", params=["ldznet", "znet", "rgbnet"])
def decoder(made, request):
    return load_decoder(made / f"{request.param}.safetensors")


@pytest.fixture(scope="module")
def ldznet(made):
    return load_decoder(made / "ldznet.safetensors")


@pytest.fixture
def passes(host, monkeypatch):
    """The number of rows of each UNet pass that is made."""
    rows, extract = [], host.extract
    monkeypatch.setattr(host, "extract", lambda z, *a, **k: rows.append(len(z)) or extract(z, *a, **k))
    return rows


def images(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def test_masks_have_the_images_size_one_a_phrase(host, decoder):
    masks = Segmenter(host, decoder)(images(2, 50, 90, 3), PHRASES)
    assert masks.shape == (2, 2, 50, 90) and masks.dtype == torch.float32
    assert 0 <= masks.min() and masks.max() <= 1


# Random weights over groups of one channel make much of rounding: batches agree to this, not better.
ROUNDING = 5e-3


def test_each_image_and_phrase_is_answered_for_itself(host, decoder):
    batch = images(2, 64, 64, 3)
    both = Segmenter(host, decoder)(batch, PHRASES)
    for row in range(2):
        for i, phrase in enumerate(PHRASES):
            alone = Segmenter(host, decoder)(batch[row : row + 1], [phrase])
            assert torch.allclose(both[row, i], alone[0, 0], atol=ROUNDING)
    assert (both[0] - both[1]).abs().max() > 10 * ROUNDING and (both[:, 0] - both[:, 1]).abs().max() > ROUNDING


def test_many_phrases_are_answered_as_few_are(host, ldznet):
    image = images(1, 64, 64, 3)
    many = Segmenter(host, ldznet)(image, PHRASES * 6)
    few = Segmenter(host, ldznet)(image, PHRASES)
    assert torch.allclose(many, few.repeat(1, 6, 1, 1), atol=ROUNDING)


def test_the_seed_and_the_timestep_decide(host, ldznet):
    segment, image = Segmenter(host, ldznet), images(1, 64, 64, 3)
    same = segment(image, PHRASES, seed=3)
    assert torch.equal(same, segment(image, PHRASES, seed=3))
    assert not torch.equal(same, segment(image, PHRASES, seed=4))
    assert not torch.equal(same, segment(image, PHRASES, seed=3, timestep=300))


@pytest.mark.parametrize(("text", "rows"), [("phrase", [2, 2]), ("caption", [2]), ("empty", [2])])
def test_only_phrase_features_cost_a_row_a_phrase(host, ldznet, passes, text, rows):
    Segmenter(host, ldznet, text=text)(images(2, 64, 64, 3), PHRASES, caption="a cat")
    assert passes == rows


def test_given_features_save_the_pass(host, ldznet, passes):
    z = host.encode(images(1, 64, 64, 3))
    features = host.extract(z, host.embed([""]), ldznet.taps, said="empty")
    passes.clear()
    shared = Segmenter(host, ldznet).latent(z, PHRASES, features=features)
    assert passes == []
    assert torch.allclose(shared, Segmenter(host, ldznet, text="empty").latent(z, PHRASES), atol=ROUNDING)


def test_capturing_does_not_change_what_is_drawn(host, ldznet):
    plain, nothing = host.sample("a cat", 64, 64, seed=2)
    drawn, features = host.sample("a cat", 64, 64, seed=2, taps=ldznet.taps)
    assert nothing is None and torch.equal(plain, drawn)
    assert features.taps == ldznet.taps and abs(features.timestep - 400) < 25 and features.text == "caption"


def test_what_is_kept_stays(host):
    z, _ = host.sample("a cat", 64, 64, seed=2)
    anew = torch.zeros(1, 1, 8, 8)
    anew[..., :4] = 1
    other, _ = host.sample("a cat", 64, 64, seed=5, keep=(z, anew))
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
def test_bad_questions_are_refused(host, ldznet, phrases, options, message):
    with pytest.raises(InputError, match=message):
        Segmenter(host, ldznet)(images(1, 64, 64, 3), phrases, **options)


def test_a_decoder_of_another_family_is_refused_with_both_named(host, ldznet):
    wide = MaskDecoder(DecoderConfig("znet", replace(ldznet.decoder_config.unet, context_dim=64)))
    with pytest.raises(InputError, match="context width 64, but that of test is 32"):
        Segmenter(host, wide)
    other = MaskDecoder(ldznet.decoder_config)
    other.info = replace(ldznet.info, prediction="v")
    with pytest.raises(InputError, match="prediction v, but that of test is eps"):
        Segmenter(host, other)


def test_samples_are_averaged_over_seeds(host, ldznet):
    image = images(1, 64, 64, 3)
    alone = [Segmenter(host, ldznet)(image, PHRASES, seed=seed) for seed in (5, 6, 7)]
    together = Segmenter(host, ldznet, samples=3)(image, PHRASES, seed=5)
    assert torch.allclose(together, sum(alone) / 3, atol=1e-5)


def test_samples_cost_a_decoder_without_features_nothing(host, made, passes):
    znet = load_decoder(made / "znet.safetensors")
    image = images(1, 64, 64, 3)
    assert torch.equal(Segmenter(host, znet, samples=9)(image, PHRASES), Segmenter(host, znet)(image, PHRASES))
    assert passes == []


def test_the_authors_way_draws_everything_from_the_seed(host, ldznet, monkeypatch):
    sizes, seeds, timesteps, texts = set(), set(), [], []
    encode, extract, embed = host.encode, host.extract, host.embed
    monkeypatch.setattr(ldznet, "info", replace(ldznet.info, templates=TEMPLATES, pixels=128 * 128))
    monkeypatch.setattr(
        host, "encode", lambda x, seed=None: (sizes.add(x.shape[1:3]), seeds.add(seed)) and encode(x, seed)
    )
    monkeypatch.setattr(host, "embed", lambda given: texts.extend(given) or embed(given))
    monkeypatch.setattr(
        host, "extract", lambda *a, timestep, **k: timesteps.append(timestep) or extract(*a, timestep=timestep, **k)
    )
    segment, image = Segmenter(host, ldznet, authors=True, samples=20), images(1, 130, 190, 3)
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
