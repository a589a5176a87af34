"""A UNet grows by a level and starts as what it grew from."""

import pytest
import torch
import torch.nn.functional as F

from ldznet_core import load_backbone
from ldznet_core.decoders.light import LightDecoder, light_config
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.mini.denoiser import UNET_CONFIG
from ldznet_core.mini.grow import grown, grown_config, grown_light, grown_mask_decoder
from ldznet_core.networks.unet import UNet


def test_attention_stays_where_it_was_and_the_lowest_level_has_none():
    config = grown_config(UNET_CONFIG)
    assert config.channel_mult == (1, 1, 1, 2) and config.attention_levels == (1, 2)
    assert config.taps == ("input_blocks.8", "middle_block", "output_blocks.3", "output_blocks.4", "output_blocks.5")


@pytest.fixture(scope="module")
def small() -> UNet:
    torch.manual_seed(0)
    return UNet(UNET_CONFIG).eval()


def test_what_worked_at_a_resolution_goes_on_there(small):
    unet = grown(small)
    for old, new in [(1, 4), (2, 5), (3, 6), (4, 7), (5, 8)]:
        assert same(small.input_blocks[old], unet.input_blocks[new])
    for old, new in [(6, 3), (8, 5), (9, 6), (10, 7)]:
        assert same(small.output_blocks[old], unet.output_blocks[new])


def test_it_starts_as_the_small_one_on_a_smooth_latent(small):
    torch.manual_seed(1)
    z = F.interpolate(torch.randn(2, 4, 4, 4), (16, 16), mode="bilinear")
    t, context = torch.tensor([300, 700]), torch.randn(2, 20, 96)
    with torch.no_grad():
        once = F.interpolate(small(z, t, context), scale_factor=2)
        twice = grown(small)(F.interpolate(z, scale_factor=2, mode="bilinear"), t, context)
    assert twice.shape == once.shape
    assert torch.corrcoef(torch.stack([once.flatten(), twice.flatten()]))[0, 1] > 0.5


def same(old: torch.nn.Module, new: torch.nn.Module) -> bool:
    """Whether two parts have the same weights."""
    return all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())


def test_a_light_decoder_reads_the_blocks_that_grew_out_of_those_it_read(small):
    old = LightDecoder(light_config(small.config, 128, 32))
    new = grown_light(old, grown(small), 256).eval()
    assert [s.level + 1 for s in old.config.sources] == [s.level for s in new.config.sources]
    assert same(old.readers, new.readers) and same(old.phrase, new.phrase) and same(old.up[0], new.up[1])
    z, text = torch.randn(1, 4, 32, 32), torch.randn(2, 77, 96)
    grid = {source.tap: 32 // 2**source.level for source in new.config.sources}
    maps = [torch.randn(1, s.channels, grid[s.tap], grid[s.tap]) for s in new.config.sources]
    attention = [torch.randn(2, 2 * s.heads, grid[s.tap], grid[s.tap]) for s in new.attending]
    with torch.no_grad():
        assert new(z, text, [*maps, *attention]).shape == (2, 1, 256, 256)


def test_ldznet_grows_with_the_unet_and_starts_without_features(small):
    torch.manual_seed(2)
    unet = grown(small)
    old = MaskDecoder(DecoderConfig("ldznet", small.config, 16, head_channels=8)).init_from(small)
    new = grown_mask_decoder(old, unet).eval()
    assert same(old.final, new.final) and same(old.input_blocks[1], new.input_blocks[4])
    z, text = torch.randn(1, 4, 32, 32), torch.randn(1, 77, 96)
    sizes = {"middle_block": (128, 4)}
    maps = [torch.randn(1, sizes.get(tap, (64, 8))[0], *2 * sizes.get(tap, (64, 8))[1:]) for tap in new.taps]
    with torch.no_grad():
        one, other = new(z, text, maps), new(z, text, [torch.zeros_like(m) for m in maps])
    assert one.shape == (1, 1, 256, 256) and torch.equal(one, other)


def test_the_bundled_miniature_is_a_grown_one():
    about = load_backbone("mini").model.about
    assert about["size"] == 256 and about["grown from"]["size"] == 128
