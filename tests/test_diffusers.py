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

from ldznet_core import InputError, Segmenter, cli, load_decoder, load_host
from ldznet_core.features import overhear
from ldznet_core.hosts.diffusers import place, unet_config
from ldznet_core.networks.decoder import DecoderConfig, MaskDecoder
from ldznet_core.networks.layers import timestep_embedding
from ldznet_core.networks.unet import UNet
from ldznet_core.queries import plan
from ldznet_core.schedule import Schedule, noise_like
from ldznet_core.tokenizer import LENGTH, ClipTokenizer
from ldznet_core.training_free import TrainingFree
from ldznet_core.weights import DecoderInfo, write_decoder

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel  # noqa: E402
from diffusers.loaders import single_file_utils as convert  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection  # noqa: E402

FOUR = {
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "sample_size": 8,
    "cross_attention_dim": 32,
}
LINEAR = {"use_linear_projection": True, "attention_head_dim": (2, 2, 4, 4)}  # heads of 16 channels, as SD 2.x's of 64
UNETS = {
    "sd1": {**FOUR, "attention_head_dim": 2},
    "sd2": {**FOUR, **LINEAR},
    "sdxl": {
        **FOUR,
        **LINEAR,
        "block_out_channels": (32, 32, 64),
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "attention_head_dim": (2, 2, 4),
        "transformer_layers_per_block": (1, 2, 3),
        "cross_attention_dim": 32 + 48,  # of both text encoders
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,  # pooled text and six numbers
    },
}
VAE = {
    "block_out_channels": (32,) * 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
}
PREDICTIONS = {"sd1": "epsilon", "sd2": "v_prediction", "sdxl": "epsilon"}
SCALES = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
INFO = {"pixels": 64 * 64, "templates": ("a photo of a {}.",)}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def connect(*given):
        raise AssertionError(f"a connection to {given[1:]}")

    monkeypatch.setattr(socket.socket, "connect", connect)


def save(folder, unet, vae, encoders, tokenizer, prediction) -> None:
    """The parts as diffusers' pipelines save them."""
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    DDIMScheduler(**BETAS, prediction_type=prediction).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    index |= {"vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"]}
    for encoder, number in zip(encoders, ("", "_2"), strict=False):
        encoder.save_pretrained(folder / f"text_encoder{number}")
        shutil.copytree(tokenizer, folder / f"tokenizer{number}")
        index[f"text_encoder{number}"] = ["transformers", type(encoder).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))


def text_sizes(tokenizer, width, layers=2, heads=2, projection=24, **more) -> CLIPTextConfig:
    words = ClipTokenizer.from_folder(tokenizer)
    tokens = {"bos_token_id": words.start, "eos_token_id": words.end, "pad_token_id": words.end}
    return CLIPTextConfig(
        vocab_size=len(words.vocabulary), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=LENGTH, projection_dim=projection, **tokens, **more,
    )  # fmt: skip


def theirs_of(unet: UNet, sizes: dict) -> UNet2DConditionModel:
    """diffusers' UNet with the weights of ours, by diffusers' own map of names."""
    theirs = UNet2DConditionModel(**sizes).eval()
    named = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
    theirs.load_state_dict(convert.convert_ldm_unet_checkpoint(named, theirs.config))
    return theirs


@pytest.fixture(scope="module", params=UNETS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def ours(family):
    return seed_weights(UNet(unet_config({"in_channels": 4, "out_channels": 4, **UNETS[family]})), 0)


@pytest.fixture(scope="module")
def folder(family, ours, made, tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = made / "tokenizer"
    encoders = [CLIPTextModel(text_sizes(tokenizer, 32))]
    if family == "sdxl":
        encoders.append(CLIPTextModelWithProjection(text_sizes(tokenizer, 48, hidden_act="gelu")))
    folder = tmp_path_factory.mktemp("models") / family
    vae = AutoencoderKL(**VAE, scaling_factor=SCALES[family])
    save(folder, theirs_of(ours, UNETS[family]), vae, encoders, tokenizer, PREDICTIONS[family])
    return folder


@pytest.fixture(scope="module")
def host(folder):
    return load_host(folder)


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


def test_the_folder_is_read_as_what_it_is(host, ours, family):
    assert host.name == family and host.unet_config == ours.config
    assert host.prediction == {"epsilon": "eps", "v_prediction": "v"}[PREDICTIONS[family]]
    assert close(host.schedule.alphas_cumprod, Schedule.stable_diffusion().alphas_cumprod, 1e-5)
    for network in (host.unet, host.vae, *(text.encoder for text in host.texts)):
        assert not network.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in network.parameters())


def test_features_equal_ours(host, ours, z):
    text, taps = host.embed(["cat", "red apple"]), ours.config.taps
    features = host.extract(z, text, taps, timestep=350, seed=7, said="caption")
    assert (features.taps, features.timestep, features.text) == (taps, 350, "caption")
    t = torch.tensor([350, 350])
    z_t = Schedule.stable_diffusion().add_noise(z, noise_like(z, 7), t)
    with torch.inference_mode():
        expected = ours.extract(z_t, t, text.context, taps, vector=vector(text))
    assert all(close(*pair) for pair in zip(features.maps, expected, strict=True))


@torch.inference_mode()
def test_what_attention_asks_and_what_noise_says_equal_ours(host, ours, z):
    text, chosen = host.embed(["cat", "red apple"]), plan(ours.config, *z.shape[-2:])
    heard = host.observe(z, text, chosen.modules(host.transformer), timestep=100, seed=7)
    t = torch.tensor([100, 100])
    z_t = host.schedule.add_noise(z, noise_like(z, 7), t)

    def find(block):
        return next(part for part in ours.get_submodule(block) if hasattr(part, "transformer_blocks"))

    with overhear(chosen.modules(find)) as expected:
        out = ours(z_t, t, text.context, vector=vector(text))
    assert heard.keys() == expected.keys() and all(close(heard[name], expected[name]) for name in heard)
    assert close(host.denoise(z, text, timestep=100, seed=7), host.schedule.split(out, z_t, t)[0])
    keys = host.project(text.context, chosen.keys(host.transformer))
    assert all(close(a, layer(text.context)) for a, layer in zip(keys, chosen.keys(find), strict=True))
    assert hooks(host.unet) == 0


@pytest.mark.parametrize("method", ["attention", "noise"])
def test_masks_need_no_decoder(host, method):
    found = TrainingFree(host, method).find(torch.rand(1, 64, 96, 3), ["cat", "red apple"])
    assert found.masks.shape == (1, 2, 64, 96) and found.masks.isfinite().all() and found.masks.amax() > 0.5


def test_words_are_counted_without_start_and_end(host):
    assert host.embed(["cat", "red apple", "", "cat " * 99]).lengths == (1, 2, 0, 75)


def hooked(network, visit):
    names = {module: name for name, module in network.named_modules()}
    return [m.register_forward_hook(lambda m, given, out: visit(names[m], out)) for m in names]


def hooks(network) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


@torch.inference_mode()
def test_features_equal_plain_hooks_and_the_pass_ends_at_the_last(host, z):
    text, taps = host.embed(["cat", "red apple"]), host.unet_config.taps
    places = [place(tap, 2) for tap in taps]
    everything, kept = [], {}

    def visit(name, out):
        everything.append(name)
        if name in places:
            kept[name] = out[0].clone()

    handles = hooked(host.unet, visit)
    t = torch.full((2,), 400)
    host.unet(host.schedule.add_noise(z, noise_like(z, 0), t), t, text.context, added_cond_kwargs=host.added(text, z))
    whole = list(everything)
    everything.clear()
    features = host.extract(z, text, taps)
    for handle in handles:
        handle.remove()
    assert all(torch.equal(a, kept[b]) for a, b in zip(features.maps, places, strict=True))
    assert everything == whole[: whole.index(places[-1]) + 1] and len(everything) < 0.8 * len(whole)
    assert hooks(host.unet) == 0


def test_no_hook_stays_after_a_fault(host, z):
    def fail(*given):
        raise MemoryError

    fault = host.unet.mid_block.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        host.extract(z, host.embed(["cat", "red apple"]), host.unet_config.taps)
    fault.remove()
    assert hooks(host.unet) == 0


@torch.inference_mode()
def test_texts_are_read_as_the_pipelines_read_them(host, family, made):
    words = ClipTokenizer.from_folder(made / "tokenizer")
    phrases = ["red apple", "cat " * 99]
    text, tokens = host.embed(phrases), torch.tensor([words.encode(phrase) for phrase in phrases])
    if family != "sdxl":
        assert torch.equal(text.context, host.texts[0].encoder(tokens)[0]) and text.pooled is None
    else:
        states = [part.encoder(tokens, output_hidden_states=True) for part in host.texts]
        assert torch.equal(text.context, torch.cat([s.hidden_states[-2] for s in states], dim=-1))
        assert torch.equal(text.pooled, states[1].text_embeds) and text.pooled.shape == (2, 24)
    assert host.tokens_cut("cat " * 99) == 24 and host.tokens_cut("red apple") == 0


def test_latents_are_scaled_means(host, family):
    image = torch.rand(1, 64, 64, 3)
    z = host.encode(image)
    pixels = image.permute(0, 3, 1, 2) * 2 - 1
    posterior = host.vae.encode(pixels).latent_dist
    assert close(z, posterior.mode() * SCALES[family])
    sampled = (posterior.mean + posterior.std * noise_like(z, 3)) * SCALES[family]
    assert close(host.encode(image, seed=3), sampled) and not close(sampled, z)
    assert host.decode(z).shape == image.shape
    with torch.autocast("cpu", torch.bfloat16):  # overflows in half precision: never there
        assert torch.equal(host.encode(image), z)


@pytest.fixture(scope="module")
def decoder(host):
    torch.manual_seed(0)
    decoder = MaskDecoder(DecoderConfig("ldznet", host.unet_config, grid=8)).eval()
    decoder.info = DecoderInfo(family="test", prediction=host.prediction, **INFO)
    return decoder


@pytest.mark.parametrize("condition", ["phrase", "empty"])
def test_masks(host, decoder, condition):
    image = torch.rand(2, 48, 80, 3, generator=torch.Generator().manual_seed(0))
    masks, again, other = (
        Segmenter(host, decoder, text=condition)(image, ["cat", "red apple"], seed=seed) for seed in (0, 0, 1)
    )
    assert masks.shape == (2, 2, 48, 80) and masks.min() >= 0 and masks.max() <= 1
    assert torch.equal(masks, again) and not torch.equal(masks, other)


def test_a_decoder_of_another_model_is_refused_by_name(host):
    with pytest.raises(InputError, match=f"96, but that of {host.name}"):
        Segmenter(host, load_decoder("mini"))


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
    assert cli.main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["taps"] == list(decoder.taps) and facts["parts"]["unet"] > facts["parts"]["text_encoder"]


# ---- damaged and half-precision folders ----


@pytest.fixture
def copied(host, folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_what_is_missing_is_not_filled_with_random_numbers(copied):
    weights = copied / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    gone = tensors.pop("quant_conv.bias")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(InputError, match="vae"):
        load_host(copied)
    save_file({**tensors, "quant_conv.bias": gone}, weights, {"format": "pt"})
    load_host(copied)
    weights = copied / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop(next(name for name in tensors if name.endswith("layers.1.mlp.fc1.weight")))
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(InputError, match="text_encoder"):
        load_host(copied)
    edited = copied / "vae" / "config.json"  # tensors that are there, but of another shape
    edited.write_text(edited.read_text().replace('"latent_channels": 4', '"latent_channels": 8'))
    with pytest.raises(InputError, match="vae"):
        load_host(copied)


def test_a_tokenizer_that_is_missing_or_another(copied):
    vocab = copied / "tokenizer" / "vocab.json"
    whole = json.loads(vocab.read_text())
    vocab.write_text(json.dumps({**whole, "dog</w>": len(whole)}))
    with pytest.raises(InputError, match="tokens"):
        load_host(copied)
    shutil.rmtree(copied / "tokenizer")
    with pytest.raises(InputError, match="tokenizer"):
        load_host(copied)


def test_half_precision_weights_alone(host, copied):
    for file in list(copied.glob("*/*.safetensors")):
        half = {name: value.half() if value.is_floating_point() else value for name, value in load_file(file).items()}
        save_file(half, file.with_stem(f"{file.stem}.fp16"), {"format": "pt"})
        file.unlink()
    before = logging.getLogger("diffusers").level, logging.getLogger("transformers").level
    embedded = load_host(copied).embed(["cat"]).context
    assert embedded.dtype == torch.float32 and close(embedded, host.embed(["cat"]).context, 0.02)
    assert before == (logging.getLogger("diffusers").level, logging.getLogger("transformers").level)


def test_names_of_older_folders(host, copied):
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
    older, image = load_host(copied), torch.rand(1, 64, 64, 3)
    assert torch.equal(older.encode(image), host.encode(image))
    assert torch.equal(older.embed(["red apple"]).context, host.embed(["red apple"]).context)


# ---- the bundled miniature in both layouts ----


def test_the_miniature_as_a_folder_gives_the_same_masks(tmp_path):
    model = load_host("mini").model
    sizes = model.unet.config
    widths = tuple(sizes.model_channels * m for m in sizes.channel_mult)
    unet = theirs_of(model.unet, {
        **FOUR, "block_out_channels": widths, "attention_head_dim": sizes.num_heads,
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
    masks, expected = (
        Segmenter(load_host(name), load_decoder("mini"))(image, phrases) for name in (tmp_path / "mini", "mini")
    )
    assert (masks - expected).abs().max() < 1e-3 and expected.max() > 0.9
