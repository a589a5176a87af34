"""Checkpoints of WebUIs as backbones: the same numbers as our own, nothing of the user's changed, and captures that
take the positive prompt's rows."""

from types import SimpleNamespace

import pytest
import torch
import webui_models
from studio import hooks

from ldznet_core import load_backbone
from ldznet_core.backbones.families.unet import plan
from ldznet_core.backbones.step_recorder import Wanted
from ldznet_core.backbones.webui import literal, read_unet_config
from ldznet_core.backbones.webui_capture import A1111Rows, Capture, forge_rows
from ldznet_core.errors import InputError
from ldznet_core.networks.schedule import Schedule, noise_like
from ldznet_core.segment.methods import decoder_free

KINDS = ("a1111", "forge")


@pytest.fixture(scope="module")
def own(made):
    return load_backbone(made / "mini.safetensors")


@pytest.fixture(scope="module", params=KINDS)
def backbone(request, made):
    with webui_models.backbone_of(request.param, made) as backbone:
        yield backbone


@pytest.fixture
def images():
    return torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(0))


def test_latents_are_the_mean_of_the_posterior_and_the_users_generator_stands(backbone, own, images):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.allclose(backbone.encode(images), own.encode(images), atol=1e-5)
    assert torch.allclose(backbone.encode(images, seed=3), own.encode(images, seed=3), atol=1e-5)
    assert torch.equal(state, torch.get_rng_state())


def test_texts_are_read_without_clip_skip_or_brackets_as_commands(backbone, own):
    texts = ["cat", "", "a (red) [apple]"]
    found, expected = backbone.embed(texts), own.embed(texts)
    assert torch.allclose(found.context, expected.context, atol=1e-5) and found.lengths == expected.lengths
    if hasattr(backbone, "engines"):
        assert [engine.clip_skip for engine in backbone.engines] == [2]
    else:
        assert backbone.options.data == {"CLIP_stop_at_last_layers": 2}


def test_a_phrase_has_no_commands():
    assert literal("a (BREAK) [x]\\") == "a \\(break\\) \\[x\\]\\\\"


def test_masks_are_those_of_our_own_backbone(backbone, own, images):
    found = decoder_free(backbone, "attention").predict(images, ["cat", "red apple"])
    expected = decoder_free(own, "attention").predict(images, ["cat", "red apple"])
    # Scores over the noise of an untrained network amplify rounding, which differs with the number of threads.
    assert torch.allclose(found.masks, expected.masks, atol=2e-3) and hooks(backbone.network) == 0


def test_clean_latents_are_those_of_our_own_backbone(backbone, own):
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found, expected = (b.denoise(z, b.embed(["cat", ""]), timestep=500, seed=2) for b in (backbone, own))
    assert torch.allclose(found, expected, atol=1e-3 * expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_vector_of_sdxl_reaches_its_unet(kind, made):
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with webui_models.backbone_of(kind, made, sdxl=True) as backbone, torch.inference_mode():
        text = backbone.embed(["cat", "red apple"])
        assert text.pooled.shape == (2, 8) and torch.allclose(text.pooled, text.context[:, 1, :8])
        found = backbone.extract(z, text, backbone.unet_config.taps, timestep=400)
        z_t = Schedule.stable_diffusion().add_noise(z, noise_like(z, 0), torch.tensor([400, 400]))
        unet = backbone.network.run[0] if kind == "forge" else backbone.network
        expected = unet.extract(z_t, torch.tensor([400, 400]), text.context, found.taps, vector=text.pooled)
    for one, other in zip(found.maps, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_a_network_of_another_family_is_refused_in_one_sentence():
    with pytest.raises(InputError, match="the loaded checkpoint is a Flux, which has no such UNet: masks from words"):
        read_unet_config(torch.nn.Sequential(torch.nn.Linear(2, 2)), "Flux")


# ---- which rows are the positive prompt's


def step(counts: list[int], rows: int | None = None):
    """What AUTOMATIC1111 says at a step whose pictures have so many prompts each."""
    conditionings = SimpleNamespace(batch=[[None] * count for count in counts])
    rows = sum(counts) + len(counts) if rows is None else rows
    sampler = SimpleNamespace(sampler_extra_args={"cond": conditionings})
    return SimpleNamespace(x=torch.zeros(rows, 4, 2, 2), denoiser=SimpleNamespace(sampler=sampler))


@pytest.mark.parametrize(
    ("counts", "calls", "expected"),
    [
        ([1, 1], [4], [[0, 1]]),  # both prompts in one call, positive ones first
        ([1, 1], [2, 2], [[0, 1], None]),  # one after the other
        ([1], [1], [[0]]),  # no negative prompt
        ([2, 2], [6], [[0, 2]]),  # AND: the first part of each picture
        ([2, 2], [2, 2, 2], [None, None, None]),  # AND in several calls: no call has both pictures
        ([2], [1, 1, 1], [[0], None, None]),
    ],
)
def test_rows_are_counted_in_the_order_of_a1111(counts, calls, expected):
    rows = A1111Rows()
    for _ in range(2):  # every step anew
        rows.begin_step(step(counts))
        assert [rows(call, {}) for call in calls] == expected


def test_rows_of_prompts_that_another_extension_made_are_not_known():
    rows = A1111Rows()
    assert rows(2, {}) is None  # no step has begun
    rows.begin_step(step([1], rows=3))
    assert rows(3, {}) is None


@pytest.mark.parametrize(
    ("roles", "rows", "expected"),
    [
        ([1, 0], 4, [2, 3]),  # negative first
        ([0], 2, [0, 1]),
        ([1], 2, None),
        ([1, 0, 0], 6, [4, 5]),  # AND: its first part comes last
        ([1, 0], 3, None),
        ([], 2, None),
    ],
)
def test_rows_are_told_by_the_roles_of_forge(roles, rows, expected):
    assert forge_rows(rows, {"transformer_options": {"cond_or_uncond": roles}}) == expected


# ---- a capture


class Net(torch.nn.Module):
    """The random model's UNet as a WebUI's sampler calls it."""

    def __init__(self, unet):
        super().__init__()
        self.input_blocks, self.middle_block, self.output_blocks = (
            unet.input_blocks, unet.middle_block, unet.output_blocks,
        )  # fmt: skip
        self.run, self.fails = (unet,), False

    def forward(self, x, timesteps, context):
        if self.fails:
            raise MemoryError
        return self.run[0](x, timesteps, context)


@pytest.fixture
def network(own):
    return Net(own.ldm_unet())


def call(network, own, timestep: int, texts: list[str], seed: int = 0):
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)).expand(len(texts), -1, -1, -1)
    with torch.inference_mode():
        return network(z, torch.full((len(texts),), timestep), own.embed(texts).context)


def capture_of(network, own, rows, **options):
    return Capture(network, own.unet_config, rows, **options)


def test_a_capture_keeps_queries_and_maps_of_the_positive_rows(network, own):
    taps = own.unet_config.taps
    capture = capture_of(network, own, lambda rows, kwargs: [1], wanted=Wanted(taps, 400), queries=True)
    both = call(network, own, 400, ["", "cat"])
    capture.close()
    assert torch.equal(both, call(network, own, 400, ["", "cat"])) and hooks(network) == 0
    with torch.inference_mode():
        outputs = own.ldm_unet().extract(
            torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([400]),
            own.embed(["cat"]).context, taps,
        )  # fmt: skip
    features = capture.features((8, 8))
    assert features.timestep == 400 and capture.pictures == 1 and capture.calls == 1
    for found, expected in zip(features.maps, outputs, strict=True):
        assert torch.allclose(found, expected, atol=1e-4)
    queries = capture.queries((8, 8))
    assert queries.plan == plan(own.unet_config, 8, 8) and len(queries) == 1
    assert capture.queries((8, 16)) is None and capture.features((8, 16)) is None


def test_noisy_steps_and_unknown_rows_leave_nothing(network, own):
    capture = capture_of(network, own, lambda rows, kwargs: None if rows == 2 else [0], queries=True)
    call(network, own, 900, ["cat"])
    call(network, own, 300, ["", "cat"])
    capture.close()
    assert capture.queries((8, 8)) is None and capture.pictures == 0 and capture.calls == 2


def test_a_call_that_raises_leaves_nothing_and_the_next_is_recorded(network, own):
    capture = capture_of(network, own, lambda rows, kwargs: [0], queries=True)
    network.fails = True
    with pytest.raises(MemoryError):
        call(network, own, 300, ["cat"])
    network.fails = False
    assert hooks(network) == 2 and capture.queries((8, 8)) is None  # its own two
    call(network, own, 200, ["cat"])
    capture.close()
    assert capture.queries((8, 8)) is not None and hooks(network) == 0


def test_hooks_go_with_the_generation_that_they_were_for(network, own):
    class Generation:
        pass

    owner = Generation()
    capture_of(network, own, lambda rows, kwargs: [0], owner=owner)
    assert hooks(network) == 2
    del owner
    assert hooks(network) == 0


def test_values_that_are_not_finite_are_not_kept(network, own):
    capture = capture_of(network, own, lambda rows, kwargs: [0], wanted=Wanted(own.unet_config.taps, 400), queries=True)
    with torch.inference_mode():
        network(torch.full((1, 4, 8, 8), torch.nan), torch.tensor([300]), own.embed(["cat"]).context)
    capture.close()
    assert capture.queries((8, 8)) is None and capture.features((8, 8)) is None
