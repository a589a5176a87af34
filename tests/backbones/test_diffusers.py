"""diffusers (where installed): our host reads its folders in the layouts of SD 1.x, SD 2.x and SDXL, small and random,
and the miniature as such a folder."""

import json
import logging
import shutil
import socket

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from seeded import seed_weights

from ldznet_core import InputError, Segmenter, cli, load_backbone, load_decoder
from ldznet_core.backbones import sampling
from ldznet_core.backbones.diffusers import place
from ldznet_core.backbones.families.unet import plan
from ldznet_core.backbones.recording import record
from ldznet_core.checkpoints.diffusers_folder import unet_config
from ldznet_core.checkpoints.tokenizer import LENGTH, ClipTokenizer
from ldznet_core.decoders.files import DecoderInfo, write_decoder
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.networks.layers import timestep_embedding
from ldznet_core.networks.schedule import Schedule, noise_like
from ldznet_core.networks.unet import UNet
from ldznet_core.segment.methods import decoder_free

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from diffusers import AutoencoderKL  # noqa: E402
from diffusers.loaders import single_file_utils as convert  # noqa: E402
from diffusers_models import (  # noqa: E402
    FOUR,
    PREDICTIONS,
    SCALES,
    UNETS,
    VAE,
    block_types,
    save,
    save_model,
    text_sizes,
    theirs_of,
)  # fmt: skip
from transformers import CLIPTextModel  # noqa: E402

INFO = {"pixels": 64 * 64, "templates": ("a photo of a {}.",)}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def connect(*given):
        raise AssertionError(f"a connection to {given[1:]}")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="module", params=UNETS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def ours(family):
    return seed_weights(UNet(unet_config({"in_channels": 4, "out_channels": 4, **UNETS[family]})), 0)


@pytest.fixture(scope="module")
def folder(family, ours, made, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / family, family, ours, made / "tokenizer")


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(folder)


@pytest.fixture(scope="module")
def z():
    return torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(1))


def close(a, b, tolerance=1e-4) -> bool:
    return a.shape == b.shape and (a - b).abs().max() <= tolerance * b.abs().max()


def vector(text, size=(64, 128)):
    """What our SDXL UNet is told besides the context, of images of this size."""
    if text.pooled is None:
        return None
    numbers = torch.tensor([*size, 0, 0, *size])
    sizes = timestep_embedding(numbers, 8).flatten()
    return torch.cat([text.pooled, sizes.expand(len(text), -1)], dim=1)


def test_the_folder_is_read_as_what_it_is(backbone, ours, family):
    assert backbone.name == family and backbone.unet_config == ours.config
    assert backbone.prediction == {"epsilon": "eps", "v_prediction": "v"}[PREDICTIONS[family]]
    assert close(backbone.schedule.alphas_cumprod, Schedule.stable_diffusion().alphas_cumprod, 1e-5)
    for network in (backbone.unet, backbone.vae, *(text.encoder for text in backbone.texts)):
        assert not network.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in network.parameters())


def test_features_equal_ours(backbone, ours, z):
    text, taps = backbone.embed(["cat", "red apple"]), ours.config.taps
    features = backbone.extract(z, text, taps, timestep=350, seed=7, conditioning="caption")
    assert (features.taps, features.timestep, features.text) == (taps, 350, "caption")
    t = torch.tensor([350, 350])
    z_t = Schedule.stable_diffusion().add_noise(z, noise_like(z, 7), t)
    with torch.inference_mode():
        expected = ours.extract(z_t, t, text.context, taps, vector=vector(text))
    assert all(close(*pair) for pair in zip(features.maps, expected, strict=True))


@torch.inference_mode()
def test_what_attention_asks_and_what_noise_says_equal_ours(backbone, ours, z):
    text, chosen = backbone.embed(["cat", "red apple"]), plan(ours.config, *z.shape[-2:])
    outputs = backbone.observe(z, text, chosen.modules(backbone.transformer), timestep=100, seed=7)
    t = torch.tensor([100, 100])
    z_t = backbone.schedule.add_noise(z, noise_like(z, 7), t)

    def find(block):
        return next(part for part in ours.get_submodule(block) if hasattr(part, "transformer_blocks"))

    with record(chosen.modules(find)) as expected:
        out = ours(z_t, t, text.context, vector=vector(text))
    assert outputs.keys() == expected.keys() and all(close(outputs[name], expected[name]) for name in outputs)
    assert close(backbone.denoise(z, text, timestep=100, seed=7), backbone.schedule.split(out, z_t, t)[0])
    keys = backbone.project(text.context, chosen.keys(backbone.transformer))
    assert all(close(a, layer(text.context)) for a, layer in zip(keys, chosen.keys(find), strict=True))
    assert hooks(backbone.unet) == 0


@pytest.mark.parametrize("method", ["attention", "noise"])
def test_masks_need_no_decoder(backbone, method):
    found = decoder_free(backbone, method).predict(torch.rand(1, 64, 96, 3), ["cat", "red apple"])
    assert found.masks.shape == (1, 2, 64, 96) and found.masks.isfinite().all() and found.masks.amax() > 0.5


def test_words_are_counted_without_start_and_end(backbone):
    assert backbone.embed(["cat", "red apple", "", "cat " * 99]).lengths == (1, 2, 0, 75)


def hooked(network, visit):
    names = {module: name for name, module in network.named_modules()}
    return [m.register_forward_hook(lambda m, given, out: visit(names[m], out)) for m in names]


def hooks(network) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


@torch.inference_mode()
def test_features_equal_plain_hooks_and_the_pass_ends_at_the_last(backbone, z):
    text, taps = backbone.embed(["cat", "red apple"]), backbone.unet_config.taps
    places = [place(tap, 2) for tap in taps]
    everything, kept = [], {}

    def visit(name, out):
        everything.append(name)
        if name in places:
            kept[name] = out[0].clone()

    handles = hooked(backbone.unet, visit)
    t = torch.full((2,), 400)
    z_t = backbone.schedule.add_noise(z, noise_like(z, 0), t)
    backbone.unet(z_t, t, text.context, added_cond_kwargs=backbone.added(text, z))
    whole = list(everything)
    everything.clear()
    features = backbone.extract(z, text, taps)
    for handle in handles:
        handle.remove()
    assert all(torch.equal(a, kept[b]) for a, b in zip(features.maps, places, strict=True))
    assert everything == whole[: whole.index(places[-1]) + 1] and len(everything) < 0.8 * len(whole)
    assert hooks(backbone.unet) == 0


def test_no_hook_stays_after_a_fault(backbone, z):
    def fail(*given):
        raise MemoryError

    fault = backbone.unet.mid_block.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        backbone.extract(z, backbone.embed(["cat", "red apple"]), backbone.unet_config.taps)
    fault.remove()
    assert hooks(backbone.unet) == 0


@torch.inference_mode()
def test_texts_are_read_as_the_pipelines_read_them(backbone, family, made):
    words = ClipTokenizer.from_folder(made / "tokenizer")
    phrases = ["red apple", "cat " * 99]
    text, tokens = backbone.embed(phrases), torch.tensor([words.encode(phrase) for phrase in phrases])
    if family != "sdxl":
        assert torch.equal(text.context, backbone.texts[0].encoder(tokens)[0]) and text.pooled is None
    else:
        states = [part.encoder(tokens, output_hidden_states=True) for part in backbone.texts]
        assert torch.equal(text.context, torch.cat([s.hidden_states[-2] for s in states], dim=-1))
        assert torch.equal(text.pooled, states[1].text_embeds) and text.pooled.shape == (2, 24)
    assert backbone.tokens_cut("cat " * 99) == 24 and backbone.tokens_cut("red apple") == 0


def test_latents_are_scaled_means(backbone, family):
    image = torch.rand(1, 64, 64, 3)
    z = backbone.encode(image)
    pixels = image.permute(0, 3, 1, 2) * 2 - 1
    posterior = backbone.vae.encode(pixels).latent_dist
    assert close(z, posterior.mode() * SCALES[family])
    sampled = (posterior.mean + posterior.std * noise_like(z, 3)) * SCALES[family]
    assert close(backbone.encode(image, seed=3), sampled) and not close(sampled, z)
    assert backbone.decode(z).shape == image.shape
    with torch.autocast("cpu", torch.bfloat16):  # overflows in half precision: never there
        assert torch.equal(backbone.encode(image), z)


@pytest.fixture(scope="module")
def decoder(backbone):
    torch.manual_seed(0)
    decoder = MaskDecoder(DecoderConfig("ldznet", backbone.unet_config, grid=8)).eval()
    decoder.info = DecoderInfo(family="test", prediction=backbone.prediction, **INFO)
    return decoder


@pytest.mark.parametrize("condition", ["phrase", "empty"])
def test_masks(backbone, decoder, condition):
    image = torch.rand(2, 48, 80, 3, generator=torch.Generator().manual_seed(0))
    masks, again, other = (
        Segmenter(backbone, decoder, text=condition)(image, ["cat", "red apple"], seed=seed) for seed in (0, 0, 1)
    )
    assert masks.shape == (2, 2, 48, 80) and masks.min() >= 0 and masks.max() <= 1
    assert torch.equal(masks, again) and not torch.equal(masks, other)


def test_a_decoder_of_another_model_is_refused_by_name(backbone):
    with pytest.raises(InputError, match=f"96, but that of {backbone.name}"):
        Segmenter(backbone, load_decoder("mini"))


def test_segment_on_the_command_line(folder, decoder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_decoder(decoder, decoder.info, tmp_path / "decoder.safetensors")
    Image.fromarray(np.zeros((24, 40, 3), np.uint8)).save("a.png")
    model = ("--model", str(folder), "--decoder", "decoder.safetensors")
    assert cli.main(["segment", "a.png", "--text", "cat", *model]) == 0
    out, err = capsys.readouterr()
    assert not err and Image.open(json.loads(out)["phrases"][0]["mask"]).size == (40, 24)
    assert cli.main(["segment", "a.png", "--text", "cat", *model, "--dtype", "bfloat16"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(sampling, "STEPS", 2)
    assert cli.main(["generate", "a cat", "--text", "cat", *model, "--size", "64x128"]) == 0
    drawn = json.loads(capsys.readouterr().out)
    assert Image.open(drawn["image"]).size == Image.open(drawn["phrases"][0]["mask"]).size == (64, 128)
    assert cli.main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["taps"] == list(decoder.taps) and facts["parts"]["unet"] > facts["parts"]["text_encoder"]


# ---- damaged and half-precision folders ----


@pytest.fixture
def copied(backbone, folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_what_is_missing_is_not_filled_with_random_numbers(copied):
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    gone = tensors.pop("quant_conv.bias")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(InputError, match="vae"):
        load_backbone(copied)
    save_file({**tensors, "quant_conv.bias": gone}, weights, {"format": "pt"})
    load_backbone(copied)
    weights = copied / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop(next(name for name in tensors if name.endswith("layers.1.mlp.fc1.weight")))
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(InputError, match="text_encoder"):
        load_backbone(copied)
    edited = copied / "vae" / "config.json"  # tensors that are there, but of another shape
    edited.write_text(edited.read_text().replace('"latent_channels": 4', '"latent_channels": 8'))
    with pytest.raises(InputError, match="vae"):
        load_backbone(copied)


def test_a_tokenizer_that_is_missing_or_another(copied):
    vocab = copied / "tokenizer" / "vocab.json"
    whole = json.loads(vocab.read_text())
    vocab.write_text(json.dumps({**whole, "dog</w>": len(whole)}))
    with pytest.raises(InputError, match="tokens"):
        load_backbone(copied)
    shutil.rmtree(copied / "tokenizer")
    with pytest.raises(InputError, match="tokenizer"):
        load_backbone(copied)


def test_half_precision_weights_alone(backbone, copied):
    for file in list(copied.glob("*/*.safetensors")):
        half = {name: value.half() if value.is_floating_point() else value for name, value in load_file(file).items()}
        save_file(half, file.with_stem(f"{file.stem}.fp16"), {"format": "pt"})
        file.unlink()
    before = logging.getLogger("diffusers").level, logging.getLogger("transformers").level
    embedded = load_backbone(copied).embed(["cat"]).context
    assert embedded.dtype == torch.float32 and close(embedded, backbone.embed(["cat"]).context, 0.02)
    assert before == (logging.getLogger("diffusers").level, logging.getLogger("transformers").level)


def test_names_of_older_folders(backbone, copied):
    """Those of SD 1.x were written when both packages had other names for some tensors."""
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(weights)
    for new, old in older.items():
        tensors = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): t for name, t in tensors.items()}
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, weights, {"format": "pt"})
    weights = copied / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(weights).items()}
    save_file({**tensors, "text_model.embeddings.position_ids": torch.arange(LENGTH)[None]}, weights, {"format": "pt"})
    older, image = load_backbone(copied), torch.rand(1, 64, 64, 3)
    assert torch.equal(older.encode(image), backbone.encode(image))
    assert torch.equal(older.embed(["red apple"]).context, backbone.embed(["red apple"]).context)


# ---- the bundled miniature in both layouts ----


def test_the_miniature_as_a_folder_gives_the_same_masks_and_drawings(tmp_path, monkeypatch):
    model = load_backbone("mini").model
    sizes = model.unet.config
    widths = tuple(sizes.model_channels * m for m in sizes.channel_mult)
    unet = theirs_of(model.unet, {
        **FOUR, **block_types(sizes), "block_out_channels": widths, "attention_head_dim": sizes.num_heads,
        "cross_attention_dim": sizes.context_dim,
    })  # fmt: skip
    vae_sizes = {**VAE, "block_out_channels": (64,) * 4, "layers_per_block": 0}
    vae = AutoencoderKL(**vae_sizes)
    named = {f"first_stage_model.{k}": v for k, v in model.vae.state_dict().items()}
    vae.load_state_dict(convert.convert_ldm_vae_checkpoint(named, vae_sizes))
    model.tokenizer.save(tmp_path / "words")
    c = model.text.config
    encoder = CLIPTextModel(text_sizes(tmp_path / "words", c.width, c.layers, c.heads))
    prefix = "" if "final_layer_norm.weight" in encoder.state_dict() else "text_model."  # transformers 5, and before
    encoder.load_state_dict({k.replace("text_model.", prefix, 1): v for k, v in model.text.state_dict().items()})
    save(tmp_path / "mini", unet, vae, [encoder], tmp_path / "words", "v_prediction")
    image = Image.open("docs/pictures/park.png").resize((128, 128))
    phrases = ["panda", "a red pumpkin!"]
    backbones = [load_backbone(name) for name in (tmp_path / "mini", "mini")]
    masks, expected = (Segmenter(backbone, load_decoder("mini"))(image, phrases) for backbone in backbones)
    assert (masks - expected).abs().max() < 1e-3 and expected.max() > 0.9
    monkeypatch.setattr(sampling, "STEPS", 2)
    drawing, expected = (backbone.sample("a panda", 64, 64, seed=1)[0] for backbone in backbones)
    assert torch.allclose(drawing, expected, atol=1e-3)
