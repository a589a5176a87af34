"""Masks without a decoder from what was recorded while sampling, on the real engine and the bundled miniature."""

import logging
from types import SimpleNamespace

import pytest
import torch
from studio import hooks, is_mask, unlike

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


@pytest.mark.parametrize(
    ("sampler", "scheduler", "cfg", "batch"),
    [("euler", "normal", 7.0, 1), ("heun", "karras", 1.0, 2), ("dpmpp_sde", "normal", 7.0, 2),
     ("ddim", "simple", 1.0, 1)],
)  # fmt: skip
def test_samplers_draw_the_same_and_every_image_is_remembered(watched, mini, sampler, scheduler, cfg, batch):
    model, capture = watched
    options = {"sampler": sampler, "scheduler": scheduler, "cfg": cfg, "steps": 8, "seed": 3}
    blank = {"samples": torch.zeros(batch, 4, 32, 32)}
    plain, latent = mini.sample(latent=blank, **options), mini.sample(model, latent=blank, **options)
    assert torch.equal(plain["samples"], latent["samples"]) and hooks(mini.unet) == 0
    queries = capture.queries(latent["samples"])
    assert len(queries) == batch and queries.size == (32, 32) and queries.own
    assert all(q.isfinite().all() for q in queries.cross)


def test_a_step_that_is_called_twice_counts_once(watched, mini, core, monkeypatch):
    recorders, taken = core("backbones.step_recorder"), []
    add = recorders.StepRecorder.add
    monkeypatch.setattr(recorders.StepRecorder, "add", lambda own, q, t: taken.append(t) or add(own, q, t))
    mini.sample(watched[0], sampler="heun", steps=8)
    assert taken == sorted(set(taken), reverse=True) and max(taken) <= recorders.SETTLED


def test_a_captured_latent_is_not_passed_through_the_unet(watched, mini, find, passes, noises):
    model, capture = watched
    latent = mini.sample(model, steps=20)
    masks = find("pumpkin", capture=capture, latent=latent, vae=None)[0]
    other = find("cat", capture=capture, latent=latent, vae=None)[0]
    assert passes == [noises, noises] and not torch.equal(masks, other)
    together = find("pumpkin | cat", capture=capture, latent=latent)[0]
    assert torch.allclose(together, torch.cat([masks, other]), atol=1e-4)
    after = find("pumpkin", latent=latent)[0]
    assert passes[-2:] == [noises, 1] and ((masks > 0.5) == (after > 0.5)).float().mean() > 0.9


def test_a_capture_brings_its_own_model(watched, mini, find, engine, core):
    """Keys of another model would say nothing about its queries, or not even fit."""
    model, capture = watched
    latent = mini.sample(model, steps=20)
    stranger = unlike(mini.model, diffusion_model=torch.nn.Linear(2, 2), model_config=SimpleNamespace(unet_config={}))
    masks = find("pumpkin", capture=capture, latent=latent)[0]
    assert torch.equal(find("pumpkin", capture=capture, latent=latent, model=stranger)[0], masks)


def test_a_batch_may_be_parted_and_shuffled(watched, mini, find):
    model, capture = watched
    latent = mini.sample(model, steps=12, latent={"samples": torch.zeros(3, 4, 32, 32)})
    masks = find("pumpkin | star", capture=capture, latent=latent)[0]
    assert is_mask(masks, 6, 256, 256)
    swapped = find("pumpkin | star", capture=capture, latent={"samples": latent["samples"][[2, 0]]})[0]
    assert torch.allclose(swapped, masks[[4, 5, 0, 1]], atol=1e-4)


def test_masks_have_the_size_of_the_decoded_picture(watched, mini, find):
    model, capture = watched
    latent = mini.sample(model)
    masks, _, overlay, _ = find("pumpkin", capture=capture, latent=latent, image=torch.rand(1, 192, 192, 3))
    assert masks.shape == (1, 192, 192) and overlay.shape == (1, 192, 192, 3)


def test_the_noise_method_takes_its_model_from_a_capture_and_makes_its_passes(watched, mini, find):
    model, capture = watched
    latent = mini.sample(model)
    given = find("pumpkin", capture=capture, latent=latent, method="noise")[0]
    assert torch.equal(given, find("pumpkin", latent=latent, method="noise")[0])


def test_a_latent_of_no_run_is_refused(watched, mini, find, core):
    model, capture = watched
    mini.sample(model, seed=0)
    with pytest.raises(core("errors").InputError, match="not one that this capture saw sampled"):
        find("pumpkin", capture=capture, latent=mini.sample(seed=1))


def test_sampling_that_never_settled_costs_an_extra_pass_and_says_so(watched, mini, find, passes, noises, caplog):
    model, capture = watched
    latent = mini.sample(model, steps=1)
    with caplog.at_level(logging.WARNING):
        masks = find("pumpkin", capture=capture, latent=latent)[0]
    assert passes == [noises, 1] and "the queries cost an extra pass" in caplog.text
    assert torch.equal(masks, find("pumpkin", latent=latent)[0])


def test_old_latents_are_read_in_an_extra_pass(watched, mini, find, passes, noises, core, caplog):
    model, capture = watched
    kept, blank = core("backbones.comfy_capture").QUERIES_KEPT, torch.zeros(1, 4, 8, 8)
    first = mini.sample(model, latent={"samples": blank.expand(kept, -1, -1, -1)})
    assert len(capture.queries(first["samples"])) == kept
    newest = mini.sample(model, latent={"samples": blank}, seed=1)
    with caplog.at_level(logging.WARNING):
        find("pumpkin", capture=capture, latent={"samples": first["samples"][:1]})
    assert passes == [noises, 1] and "is long past" in caplog.text
    assert capture.queries(newest["samples"]) and capture.queries(first["samples"][1:])
    assert capture.features(first["samples"])  # these are small and stay


def test_an_interrupted_run_leaves_nothing(watched, mini, interrupted):
    model, capture = watched
    interrupted(lambda: mini.sample(model, steps=8), after=6)
    assert not capture.runs and capture.bytes == 0 and hooks(mini.unet) == 0
    assert capture.queries(mini.sample(model, steps=8)["samples"])


def test_merged_tokens_cost_the_self_attention_and_harm_nothing(pack_nodes, mini, find, passes, noises):
    merging = mini.model.clone()
    merging.set_model_attn1_patch(lambda q, k, v, options: (q[:, ::2], k, v))
    merging.set_model_patch(lambda n, options: n.repeat_interleave(2, dim=1), "attn1_output_patch")
    model, capture = pack_nodes["LDZNetCapture"].execute(merging).args
    latent = mini.sample(model, steps=12)
    assert torch.equal(latent["samples"], mini.sample(merging, steps=12)["samples"])
    assert capture.queries(latent["samples"]).own is None
    masks = find("pumpkin", capture=capture, latent=latent, spread="objects")[0]
    assert passes == [noises] and torch.equal(masks, find("pumpkin", capture=capture, latent=latent, spread="none")[0])


def test_rows_that_are_not_the_prompts_own_are_not_taken_for_it(pack_nodes, mini, find, passes, noises, caplog):
    """Regional prompts put every row through attention once a region."""
    regional = mini.model.clone()
    regional.set_model_attn2_patch(lambda q, k, v, options: tuple(x.repeat(2, 1, 1) for x in (q, k, v)))
    regional.set_model_attn2_output_patch(lambda n, options: n.chunk(2)[0])
    model, capture = pack_nodes["LDZNetCapture"].execute(regional).args
    latent = mini.sample(model, steps=12)
    assert torch.equal(latent["samples"], mini.sample(regional, steps=12)["samples"])
    with caplog.at_level(logging.WARNING):
        masks = find("pumpkin", capture=capture, latent=latent)[0]
    assert passes == [noises, 1] and "the queries cost an extra pass" in caplog.text
    assert is_mask(masks, 1, 256, 256) and hooks(mini.unet) == 0
