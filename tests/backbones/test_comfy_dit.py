"""Diffusion transformers of every family that is read, tiny and random, in ComfyUI's own classes."""

import importlib
from dataclasses import replace

import pytest
import torch
from studio import hooks
from tiny_dits import FAMILIES, clip, latent, tiny

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")
OVERRIDE = "optimized_attention_override"
# The row of a prompt's first word in the context, and its place in the sequence of 35 image tokens and the text.
FIRST_ROW = {
    "flux": (0, 0), "flux2": (3, 512 - 8 + 3), "chroma": (0, 0), "sd3": (77, 77), "qwen": (2, 2), "lumina2": (1, 1),
    "z-image": (3, 3), "hidream": (0, 35), "wan": (0, 0), "cosmos": (0, 0), "anima": (0, 0),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def showing(engine):
    """An engine that shows attention."""
    from comfy.ldm.modules import attention

    if not hasattr(attention, "wrap_attn"):
        pytest.skip("this engine does not show attention")


@pytest.fixture(scope="module")
def made(family, showing):
    """MODEL and CLIP of a family."""
    found = tiny(family)
    if found is None:
        pytest.skip("this engine does not know the family")
    return found


@pytest.fixture
def backbone(made, core):
    return core("backbones.comfy_dit").ComfyTransformerBackbone(*made)


@pytest.fixture
def model(made):
    return made[0]


@pytest.fixture
def words(made):
    return made[1]


def draw(model, clip, steps: int = 3, **extra) -> torch.Tensor:
    """What stock KSampler makes of noise; `extra` goes with the positive prompt."""
    import nodes

    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a red cat", "")]
    prompts[0][0][1].update(extra)
    blank = {"samples": torch.zeros_like(latent(model))}
    return nodes.KSampler().sample(model, 3, steps, 2.0, "euler", "simple", *prompts, blank)[0]["samples"]


def test_sampling_is_the_same_before_and_after_words_are_read(made, backbone):
    model, _ = made
    before = draw(*made)
    z = backbone.scaled(latent(model))
    shown = backbone.attend(z, backbone.concepts(["cat", "red hat"]), timestep=500)
    assert before.isfinite().all() and torch.equal(before, draw(*made))
    rows, columns = backbone.grid(z)
    for block in shown:
        assert block.share.shape == (1, rows * columns, 3) and block.image.shape[:2] == (1, rows * columns)
        assert block.share.min() >= 0 and 0 < block.share.max() < 1
    assert hooks(model.model) == 0 and OVERRIDE not in model.model_options["transformer_options"]


def test_the_words_are_read_where_the_network_has_them(family, model, words, core):
    """Another context in the row of a word changes the keys of that place of the sequence alone."""
    rows = FIRST_ROW[family]
    backbone, seen = core("backbones.comfy_dit").ComfyTransformerBackbone(model.clone(), words), []

    def earlier(func, q, k, v, heads, *args, **kwargs):
        seen.append(k.transpose(1, 2).flatten(2) if kwargs.get("skip_reshape") else k)  # [B, L, heads d]
        return func(q, k, v, heads, *args, **kwargs)

    backbone.model.model_options["transformer_options"][OVERRIDE] = earlier
    z, concepts = backbone.scaled(latent(model)), backbone.concepts(["cat", "dog"])
    assert concepts.tokens == ((rows[0],), (rows[0] + 2,), (rows[0] + 3,))
    keys = []
    for change in (0.0, 1.0):
        (context, extra), *_ = concepts.prompt
        context = context.clone()
        context[:, rows[0]] += change
        seen.clear()
        backbone.attend(z, replace(concepts, prompt=[[context, extra]]), (0,), timestep=500)
        keys.append(list(seen))
    changed = [(a - b).abs().amax((0, 2)).nonzero().flatten().tolist() for a, b in zip(*keys, strict=True)]
    assert next(places for places in changed if places) == [rows[1]]


def test_words_become_masks_of_the_latents_size(model, words, pack_nodes):
    node, samples = pack_nodes["LDZNetAttentionMask"], latent(model, 11, 14, batch=2)
    given = {"model": model, "latent": {"samples": samples}, "presence": 0.0}
    masks, union, overlay, reach = node.execute(words, "cat | red hat", **given).args
    side = getattr(model.model.latent_format, "spacial_downscale_ratio", 8)  # 16 in Flux.2
    size = (11 * side, 14 * side)
    assert masks.shape == (4, *size) and union.shape == (2, *size) and overlay.shape == (2, *size, 3)
    assert masks.isfinite().all() and masks.amax() > 0.5 and len({float(mask.sum()) for mask in masks}) > 1
    assert reach == 2 / (14 if model.model.latent_format.latent_channels == 128 else 7)  # two image tokens
    assert torch.equal(masks, node.execute(words, "cat | red hat", **given).args[0])
    assert hooks(model.model) == 0


def test_a_capture_samples_the_same_and_keeps_the_latent_half_way(model, words, pack_nodes, core):
    watched, capture = pack_nodes["LDZNetCapture"].execute(model).args
    before, after = (draw(one, words, steps=6) for one in (model, watched))
    assert torch.equal(before, after) and hooks(model.model) == 0
    kept = capture.noised(after)
    assert 200 <= kept.timestep <= 800 and kept.z.shape[-2:] == after.shape[-2:] and kept.z.ndim == 4
    assert kept.z.isfinite().all() and not torch.equal(kept.z.squeeze(), after.squeeze())
    node, given = pack_nodes["LDZNetAttentionMask"], {"latent": {"samples": after}, "presence": 0.0}
    text = "cat | red hat | dog | house | car"
    captured = node.execute(words, text, capture=capture, **given).args[0]
    assert captured.shape[0] == 5 and captured.amax() > 0 and captured.isfinite().all()
    assert not torch.equal(captured, node.execute(words, text, model=model, **given).args[0])
    with pytest.raises(core("errors").InputError, match="is not one that this capture saw sampled"):
        node.execute(words, "cat", capture=capture, latent={"samples": after + 1})


def test_a_function_that_computes_attention_goes_on_doing_so(model, words, core):
    backbone_of = core("backbones.comfy_dit").ComfyTransformerBackbone
    other, calls = model.clone(), []

    def earlier(func, *args, **kwargs):
        calls.append(1)
        return func(*args, **kwargs)

    other.model_options["transformer_options"][OVERRIDE] = earlier
    one, two = backbone_of(model, words), backbone_of(other, words)
    z = one.scaled(latent(model))
    shown = [b.attend(z, b.concepts(["cat"]), timestep=500)[-1] for b in (one, two)]
    assert calls and torch.equal(shown[0].share, shown[1].share)
    assert other.model_options["transformer_options"][OVERRIDE] is earlier


def test_concepts_that_ride_along_change_nothing_of_the_picture_under_its_caption(family, model, words, backbone):
    z = backbone.scaled(latent(model))
    riding, alone = backbone.concepts(["cat", "red hat"], "a red cat"), backbone.concepts(["dog"])
    context = words.encode_from_tokens_scheduled(words.tokenize("a red cat"))
    alone = replace(alone, prompt=context, tokens=((0,), (1,)), length=context[0][0].shape[1])
    plain, found = (backbone.attend(z, one, timestep=500)[-1] for one in (alone, riding))
    # These pad a text to a length, or place the image or the text by the length of the text.
    exact = family not in ("flux2", "lumina2", "z-image", "anima")
    assert torch.allclose(plain.image, found.image, atol=1e-4) == exact
    assert found.share.shape[2] == 3 and 0 < found.share.max() < 1 and found.share.isfinite().all()
    other = backbone.attend(z, backbone.concepts(["cat", "red hat"], "a house"), timestep=500)[-1]
    assert torch.cosine_similarity(plain.image, found.image, dim=-1).mean() > 0.9
    assert not torch.allclose(found.image, other.image, atol=1e-4) and hooks(model.model) == 0


def test_an_interrupted_pass_leaves_nothing(model, words, backbone):
    from comfy.model_management import InterruptProcessingException

    before = draw(model, words)
    z, concepts = backbone.scaled(latent(model)), backbone.concepts(["cat"])

    def interrupt(*given):
        raise InterruptProcessingException

    module = next(iter(backbone.family.modules(model.model.diffusion_model, (0, 1)).values()))
    handle = module.register_forward_pre_hook(interrupt)
    with pytest.raises(InterruptProcessingException):
        backbone.attend(z, concepts, timestep=500)
    handle.remove()
    assert hooks(model.model) == 0 and torch.equal(before, draw(model, words))


def test_a_lora_is_on(model, words, core):
    tuned, parameters = model.clone(), model.model.diffusion_model.named_parameters()
    change = {f"diffusion_model.{name}": ("diff", (0.1 * p.sign(),)) for name, p in parameters if p.ndim == 2}
    assert tuned.add_patches(change, 1.0)
    backbone_of = core("backbones.comfy_dit").ComfyTransformerBackbone
    one, two = (backbone_of(made, words) for made in (model, tuned))
    z = one.scaled(latent(model))
    shown = [b.attend(z, b.concepts(["cat"]), timestep=500)[-1].share for b in (one, two)]
    again = one.attend(z, one.concepts(["cat"]), timestep=500)[-1].share
    assert not torch.equal(*shown) and torch.equal(shown[0], again)


@pytest.mark.parametrize("family", ["flux", "chroma", "sd3", "qwen"], indirect=True, scope="module")
def test_a_controlnet_is_sampled_with_as_without_a_capture(family, model, words, pack_nodes):
    from comfy.controlnet import ControlBase

    class Control(ControlBase):
        """One that adds the same to the image tokens after every block."""

        def get_control(self, x_noisy, *args) -> dict:
            add = torch.full((len(x_noisy), 35, {"sd3": 320}.get(family, 64)), 0.5)
            return {"input": [add] * 4, "output": [add] * 4}

        def copy(self):
            return self

    watched, capture = pack_nodes["LDZNetCapture"].execute(model).args
    control = {"control": Control(), "control_apply_to_uncond": False}
    plain, before, after = draw(model, words), draw(model, words, **control), draw(watched, words, **control)
    assert torch.equal(before, after) and not torch.equal(before, plain) and hooks(model.model) == 0
    given = {"capture": capture, "latent": {"samples": after}, "presence": 0.0}
    assert pack_nodes["LDZNetAttentionMask"].execute(words, "cat", **given).args[0].isfinite().all()


@pytest.mark.parametrize("family", ["sd3"], indirect=True, scope="module")
def test_stable_diffusion_3_without_t5_is_read_at_the_words_of_clip(model, core):
    without = clip(replace(FAMILIES["sd3"][2], missing=("t5xxl",)))
    concepts = core("backbones.comfy_dit").ComfyTransformerBackbone(model, without).concepts(["cat", "red hat"])
    assert concepts.length == 77 and concepts.tokens == ((1,), (3, 4), (5,))


@pytest.mark.parametrize("family", ["flux"], indirect=True, scope="module")
def test_a_decoder_refuses_what_a_transformer_left_in_a_capture(model, words, mini, pack_nodes, core):
    watched, capture = pack_nodes["LDZNetCapture"].execute(model).args
    given = {"samples": draw(watched, words)}
    with pytest.raises(core("errors").InputError, match="family Flux, which has no such UNet"):
        pack_nodes["LDZNetSegmentCaptured"].execute(capture, given, words, mini.decoder, "cat")


# ---- without any network ----


@pytest.mark.parametrize("module, tokenizer, encoder", [
    ("flux", "FluxTokenizer", "t5xxl"), ("sd3_clip", "SD3Tokenizer", "l"), ("sd3_clip", "SD3Tokenizer", "t5xxl"),
    ("qwen_image", "QwenImageTokenizer", "qwen25_7b"), ("z_image", "ZImageTokenizer", "qwen3_4b"),
    ("flux", "KleinTokenizer", "qwen3_4b"), ("anima", "AnimaTokenizer", "t5xxl"),
])  # fmt: skip
def test_words_are_found_in_the_tokens_of_the_real_tokenizers(engine, core, module, tokenizer, encoder):
    try:
        made = getattr(importlib.import_module(f"comfy.text_encoders.{module}"), tokenizer)()
    except (ImportError, AttributeError, FileNotFoundError):
        pytest.skip("this engine has no such tokenizer")
    names = ["cat", "red hat", "a person's left shoe", "background"]

    def tokenize(text: str) -> list[int]:
        return core("backbones.comfy_dit").flat(made.tokenize_with_weights(text)[encoder])

    ids = tokenize(core("backbones.joint").prompt_of(names))
    found = core("backbones.joint").spans(tokenize, names)
    part = getattr(made, f"clip_{encoder}", None) or getattr(made, encoder)
    read = [part.tokenizer.decode([ids[place] for place in places]).replace(" '", "'").strip() for places in found]
    assert read == [*names, "."]


@pytest.mark.parametrize("family, sizes", [
    ("PixArtSigma", {"image_model": "pixart_sigma", "hidden_size": 32, "depth": 1, "num_heads": 2, "input_size": 8}),
    ("HunyuanDiT", {"image_model": "hydit", "hidden_size": 64, "depth": 2, "num_heads": 2, "input_size": (8, 8)}),
])  # fmt: skip
def test_a_model_that_shows_no_attention_is_refused_and_noise_is_named(showing, pack_nodes, core, family, sizes):
    from comfy import supported_models
    from comfy.model_patcher import ModelPatcher

    config = getattr(supported_models, family)(sizes)
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    model = ModelPatcher(config.get_model({}, "", device="cpu"), load_device=cpu, offload_device=cpu)
    given = {"latent": {"samples": torch.randn(1, 4, 8, 8)}}
    with pytest.raises(core("errors").InputError, match=f"family {family}, .* any model by its method 'noise'"):
        pack_nodes["LDZNetAttentionMask"].execute(tiny("flux")[1], "cat", model=model, **given)
