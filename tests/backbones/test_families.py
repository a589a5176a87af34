"""One UNet for SD 1.x, 2.x, SDXL and the miniature: public names and counts, sizes read back, decoders that learn."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ldznet_core import InputError, load_decoder
from ldznet_core.checkpoints import ldm
from ldznet_core.decoders.files import DecoderInfo, write_decoder
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.networks.unet import SD2, SDXL, UNet, UNetConfig
from ldznet_core.segment.decoder import check_fit

MINI = UNetConfig(model_channels=64, channel_mult=(1, 1, 2, 2), num_heads=4, context_dim=96)
FULL = {"sd1": UNetConfig(), "sd2": SD2, "sdxl": SDXL, "mini": MINI}
SMALL = {
    "sd1": UNetConfig(model_channels=32, num_heads=2, context_dim=64),
    "sd2": replace(SD2, model_channels=64, context_dim=64),
    "sdxl": replace(SDXL, model_channels=32, transformer_depth=(0, 1, 2), context_dim=64, vector_channels=80),
}
PAPER = ("input_blocks.8", "middle_block", "output_blocks.3", "output_blocks.4", "output_blocks.5")
TAPS = {
    "sd1": PAPER, "sd2": PAPER, "mini": PAPER,
    "sdxl": ("input_blocks.8", "middle_block", "output_blocks.0", "output_blocks.1", "output_blocks.2"),
}  # fmt: skip


def shapes(build) -> dict[str, tuple]:
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in build().state_dict().items()}


@pytest.mark.parametrize(
    ("family", "parameters", "tensors"),
    [("sd1", 859_520_964, 686), ("sd2", 865_910_724, 686), ("sdxl", 2_567_463_684, 1680)],
)
def test_full_size_unets_have_the_public_counts(family, parameters, tensors):
    found = shapes(lambda: UNet(FULL[family]))
    assert len(found) == tensors and sum(torch.Size(s).numel() for s in found.values()) == parameters


@pytest.mark.parametrize(
    ("family", "known"),
    [
        ("sd2", {
            "input_blocks.1.1.proj_in.weight": (320, 320),
            "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
            "output_blocks.11.1.transformer_blocks.0.norm1.bias": (320,),
        }),
        ("sdxl", {
            "label_emb.0.0.weight": (1280, 2816),
            "label_emb.0.2.weight": (1280, 1280),
            "input_blocks.1.1.norm.weight": None,
            "input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
            "input_blocks.4.1.transformer_blocks.2.norm1.weight": None,
            "input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight": (10240, 1280),
            "input_blocks.9.0.op.weight": None,
            "middle_block.1.transformer_blocks.9.attn1.to_out.0.bias": (1280,),
            "output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
            "output_blocks.8.0.skip_connection.weight": (320, 640, 1, 1),
            "output_blocks.8.1.norm.weight": None,
        }),
    ],
)  # fmt: skip
def test_full_size_unets_have_the_public_names(family, known):
    found = shapes(lambda: UNet(FULL[family]))
    assert {name: found.get(name) for name in known} == known


@pytest.mark.parametrize("family", FULL)
def test_the_taps_follow_the_rule(family):
    assert FULL[family].taps == TAPS[family]


@pytest.mark.parametrize("config", [*FULL.values(), *SMALL.values()])
def test_sizes_are_read_from_tensors(config):
    assert ldm.unet_config(shapes(lambda: UNet(config)), {"num_heads": config.num_heads}) == config


def test_relatives_that_are_arranged_otherwise_are_refused():
    whole = shapes(lambda: UNet(SMALL["sdxl"]))
    pruned = {k: v for k, v in whole.items() if not k.startswith("output_blocks.1.1.transformer_blocks.1.")}
    deeper = {**whole, "middle_block.1.transformer_blocks.2.norm1.weight": (128,)}
    for other in (pruned, deeper):
        with pytest.raises(ValueError, match="arranged otherwise than those of SD 1.x, 2.x and SDXL"):
            ldm.unet_config(other, {})


def test_a_file_with_another_text_encoder_is_refused_as_such(tmp_path):
    file = tmp_path / "sd2.safetensors"
    save_file({f"model.diffusion_model.{k}": v for k, v in UNet(SMALL["sd2"]).state_dict().items()}, file)
    with pytest.raises(InputError, match="its text encoder is not that of SD 1.x"):
        ldm.read(file, tokenizer=None)


@torch.no_grad()
def test_only_sdxl_takes_a_vector_and_needs_it():
    z, t, context, vector = torch.randn(1, 4, 8, 8), torch.tensor([400]), torch.randn(1, 7, 64), torch.randn(1, 80)
    unet = UNet(SMALL["sdxl"]).eval()
    assert not torch.equal(unet(z, t, context, vector=vector), unet(z, t, context, vector=2 * vector))
    with pytest.raises(ValueError, match="takes a vector of 80 channels, got none"):
        unet(z, t, context)
    with pytest.raises(ValueError, match=r"takes a vector of 0 channels, got \[1, 80\]"):
        UNet(SMALL["sd1"]).extract(z, t, context, TAPS["sd1"], vector)


# --- decoders --------------------------------------------------------------------------------------------


def test_a_full_size_sdxl_decoder_reads_each_map_once():
    found = shapes(lambda: MaskDecoder(DecoderConfig("ldznet", SDXL, grid=64)))
    readers = {name.partition(".attn3.")[0] for name in found if ".attn3." in name}
    assert readers == {f"{tap}.1.transformer_blocks.0" for tap in SDXL.taps}
    assert {v for k, v in found.items() if k.endswith("positional_embedding")} == {(1280, 16 * 16 + 1)}
    assert not [name for name in found if name.startswith("label_emb")]


@pytest.fixture(scope="module", params=SMALL)
def family(request):
    """A small UNet of a family and what it makes of a noised latent: (unet, z, context, maps)."""
    torch.manual_seed(0)
    config = SMALL[request.param]
    unet = UNet(config).eval().requires_grad_(False)
    z, context = torch.randn(1, 4, 8, 16), torch.randn(1, 77, 64)
    vector = torch.randn(1, config.vector_channels) if config.vector_channels else None
    return unet, z, context, unet.extract(z, torch.tensor([400]), context, config.taps, vector)


@pytest.fixture(params=["ldznet", "znet"])
def decoder(request, family):
    torch.manual_seed(1)
    return MaskDecoder(DecoderConfig(request.param, family[0].config, grid=8, head_channels=4))


def given(decoder, family):
    _, z, context, maps = family
    return z, context, maps if decoder.taps else None


def test_a_new_decoder_has_the_weights_of_its_host(decoder, family):
    backbone, own = family[0].state_dict(), decoder.init_from(family[0]).state_dict()
    same = {k for k, v in backbone.items() if not k.startswith(("label_emb", "out.2"))}
    assert all(torch.equal(own[k], backbone[k]) for k in same)
    assert torch.equal(own["out.2.weight"][:1], backbone["out.2.weight"][:1])
    new = [k for k in own if k not in backbone and not k.startswith("final")]
    assert bool(new) == bool(decoder.taps)
    assert all("attn3" in name or "norm_sd" in name or "attentionpool2D" in name for name in new)


def test_gradients_reach_every_part(decoder, family):
    logits = decoder(*given(decoder, family))
    assert logits.shape == (1, 1, 64, 128)
    logits.square().mean().backward()
    assert not [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_few_steps_learn_a_mask(decoder, family):
    target = F.interpolate((torch.randn(1, 1, 4, 8) > 0).float(), scale_factor=16)
    decoder.init_from(family[0])
    optimiser, losses = torch.optim.AdamW(decoder.parameters(), lr=2e-3), []
    for _ in range(20):
        loss = F.binary_cross_entropy_with_logits(decoder(*given(decoder, family)), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@torch.no_grad()
def test_a_written_decoder_answers_the_same(decoder, family, tmp_path):
    write_decoder(decoder, DecoderInfo("test", "eps"), tmp_path / "decoder.safetensors", torch.float32)
    read = load_decoder(tmp_path / "decoder.safetensors")
    assert read.decoder_config == decoder.decoder_config and read.taps == decoder.taps
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), decoder.parameters(), strict=True))
    # Not bit for bit: weights that lie elsewhere in memory may be summed up in another order.
    assert torch.allclose(read(*given(read, family)), decoder.eval()(*given(decoder, family)), atol=1e-5)


def test_files_from_before_sdxl_are_read():
    config = DecoderConfig("ldznet", MINI, grid=16)
    before = json.loads(json.dumps(config.as_dict()))
    del before["unet"]["vector_channels"]
    assert DecoderConfig.from_dict(before) == config


def test_a_decoder_that_reads_other_blocks_is_refused():
    wide = replace(SMALL["sd1"], attention_levels=(0, 1))
    backbone = SimpleNamespace(name="test", prediction="eps", unet_config=wide)
    with torch.device("meta"), pytest.raises(InputError, match=r"features at input_blocks\.8, .* is input_blocks\.5, "):
        check_fit(backbone, MaskDecoder(DecoderConfig("ldznet", SMALL["sd1"])))
