"""The light decoder: what it reads of each family, its contract, and masks through the segmenter."""

import pytest
import torch
import torch.nn.functional as F

from ldznet_core import Segmenter, load_backbone, load_decoder
from ldznet_core.decoders.base import DecoderInfo
from ldznet_core.decoders.files import write_decoder
from ldznet_core.decoders.light import LightConfig, LightDecoder, light_config, stretched_product
from ldznet_core.networks.unet import SD2, SDXL, UNetConfig
from ldznet_core.segment.features import Keys, attention_logits


def taps(config: LightConfig) -> list[tuple[str, int]]:
    """What queries are read of, with levels; a map is read of each block that has queries, and of the middle."""
    queries = [(source.tap, source.level) for source in config.sources if source.heads]
    maps = [source.tap for source in config.sources if source.as_map]
    blocks = [tap.split("@")[0] for tap, _ in queries]
    assert [m for m in maps if m in blocks] == blocks and {*maps} - {*blocks} <= {"middle_block"}
    return queries


@pytest.mark.parametrize(("unet", "side"), [(UNetConfig(), 512), (SD2, 768)])
def test_stable_diffusion_is_read_up_to_its_coarsest_decoder_blocks(unet, side):
    config = light_config(unet, side)
    assert taps(config) == [
        ("input_blocks.4@0", 1), ("input_blocks.5@0", 1), ("input_blocks.7@0", 2), ("input_blocks.8@0", 2),
        ("output_blocks.3@0", 2), ("output_blocks.4@0", 2), ("output_blocks.5@0", 2),
    ]  # fmt: skip
    assert config.phrase_levels == (2, 1) and config.sources[-1].tap == "output_blocks.5"


def test_sdxl_is_read_in_the_middle_of_its_deep_transformers():
    config = light_config(SDXL, 1024)
    assert taps(config) == [
        ("input_blocks.4@1", 1), ("input_blocks.5@1", 1), ("input_blocks.7@5", 2), ("input_blocks.8@5", 2),
        ("middle_block@5", 2), ("output_blocks.0@5", 2), ("output_blocks.1@5", 2), ("output_blocks.2@5", 2),
        ("output_blocks.3@1", 1), ("output_blocks.4@1", 1), ("output_blocks.5@1", 1),
    ]  # fmt: skip
    assert {(source.channels, source.heads) for source in config.sources if source.heads} == {(640, 10), (1280, 20)}


def test_of_small_pictures_the_finest_level_with_attention_is_read():
    assert taps(light_config(SDXL, 64)) == [
        ("input_blocks.4@1", 1), ("input_blocks.5@1", 1),
        ("output_blocks.3@1", 1), ("output_blocks.4@1", 1), ("output_blocks.5@1", 1),
    ]  # fmt: skip


def test_it_has_at_most_one_and_a_half_percent_of_the_full_decoders_weights():
    with torch.device("meta"):
        decoder = LightDecoder(light_config(UNetConfig(), 512))
    megabytes = 2 * sum(p.numel() for p in decoder.parameters()) / 1e6
    assert 8 <= megabytes <= 12  # of the full one's 1,852 in half precision


def test_attention_is_the_log_odds_of_a_word_against_the_empty_text():
    q = torch.tensor([[[1.0], [2.0]]])  # one image of two positions, one head of one channel
    words = torch.tensor([[[3.0], [5.0]], [[1.0], [9.0]]])  # two phrases, the second of one word
    keys = Keys(words, torch.tensor([[True, True], [True, False]]), torch.zeros(2, 1))
    rest = torch.tensor(2.0).log()  # of two keys that are 0
    expected = torch.tensor([[[4.0, 8.0], [5.0, 10.0]], [[1.0, 2.0], [1.0, 2.0]]]) - rest
    assert torch.allclose(attention_logits(q, keys, heads=1), expected)  # mean over words, then their largest


@pytest.mark.parametrize("height, width", [(24, 40), (12, 20), (9, 15), (6, 10), (3, 5), (13, 20), (24, 39)])
def test_a_product_with_stretched_weights_is_that_of_weights_stretched_first(height, width):
    pixels = torch.randn(2, 6, height, width, requires_grad=True)
    weights = torch.randn(6, 6, 3, 5, requires_grad=True)
    stretched = F.interpolate(weights, (height, width), mode="bilinear", align_corners=False)
    expected = (stretched * pixels.repeat_interleave(3, 0)).sum(1, keepdim=True)
    found, like = stretched_product(weights, pixels), torch.randn_like(expected)
    assert torch.allclose(found, expected, atol=1e-5)
    for one, other in zip(*(torch.autograd.grad(x, (pixels, weights), like) for x in (found, expected)), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.fixture(scope="module")
def backbone(made):
    return load_backbone(made / "mini.safetensors")


@pytest.fixture
def decoder(backbone):
    torch.manual_seed(0)
    return LightDecoder(light_config(backbone.unet_config, 128, width=16)).eval()


def test_masks_of_many_phrases_are_those_of_each_phrase_alone(backbone, decoder):
    image = torch.rand(2, 64, 128, 3, generator=torch.Generator().manual_seed(0))
    segment = Segmenter(backbone, decoder)
    found = segment.predict(image, ["cat", "red apple", "bus"])
    assert found.masks.shape == (2, 3, 64, 128) and found.presence.shape == (2, 3)
    alone = segment.predict(image[1:], ["red apple"])
    assert torch.allclose(found.masks[1, 1], alone.masks[0, 0], atol=1e-4)
    assert torch.allclose(found.presence[1, 1], alone.presence[0, 0], atol=1e-3)
    assert not torch.allclose(found.presence[:, 0], found.presence[:, 1])  # phrases matter


def test_phrases_cost_no_further_pass_of_the_backbone(backbone, decoder, monkeypatch):
    calls, extract = [], backbone.extract
    monkeypatch.setattr(backbone, "extract", lambda *a, **k: calls.append(1) or extract(*a, **k))
    Segmenter(backbone, decoder)(torch.zeros(1, 64, 64, 3), [f"thing {i}" for i in range(20)])
    assert len(calls) == 1


def test_features_recorded_while_sampling_serve_as_those_of_a_pass(backbone, decoder):
    z, features = backbone.sample("a cat", 64, 64, seed=0, taps=decoder.taps, near=decoder.timestep)
    found = Segmenter(backbone, decoder).predict_latent(z, ["cat", "bus"], captured=features)
    assert found.masks.shape == (1, 2, 64, 64) and found.masks.isfinite().all()


def test_a_file_holds_it_whole(backbone, decoder, tmp_path):
    info = DecoderInfo("mini", backbone.prediction, conditions=("empty", "caption", "phrase"))
    write_decoder(decoder, info, tmp_path / "light.safetensors", torch.float32)
    again = load_decoder(tmp_path / "light.safetensors", kind="light")
    assert again.config == decoder.config and again.conditions == info.conditions
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(*(Segmenter(backbone, one)(image, ["cat"]) for one in (decoder, again)))


def test_features_that_do_not_fit_are_refused(decoder):
    with pytest.raises(ValueError, match="takes 20 features and 10 maps of attention, got 3"):
        decoder(torch.zeros(1, 4, 8, 8), torch.zeros(1, 77, 96), [torch.zeros(1, 64, 8, 8)] * 3)


def test_a_step_of_training_reaches_every_weight(backbone, decoder, monkeypatch):
    monkeypatch.setattr(decoder, "kept", lambda features: [True] * len(features))
    decoder.train()
    z, text = torch.randn(1, 4, 8, 8), torch.randn(2, 77, backbone.unet_config.context_dim)
    maps = [torch.randn(1, s.channels, 8 >> s.level, 8 >> s.level) for s in decoder.config.sources]
    attention = [torch.randn(2, 2 * s.heads, 8 >> s.level, 8 >> s.level) for s in decoder.attending]
    logits, presence = decoder.predict(z, text, maps + attention, torch.tensor([100]))
    for parameter in decoder.parameters():  # what begins at zero hides what is behind it
        torch.nn.init.normal_(parameter, std=0.1)
    logits, presence = decoder.predict(z, text, maps + attention, torch.tensor([100]))
    (logits.square().mean() + presence.sum()).backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []
