"""Masks while sampling: the sampler draws the very same, and a latent is answered from its own run or not at all."""

import logging

import pytest
import torch
from studio import hooks

AIM = 400

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


@pytest.fixture
def watched(pack_nodes, mini):
    """MODEL and CAPTURE of a new Capture node."""
    return pack_nodes["LDZNetCapture"].execute(mini.model).args


@pytest.fixture
def find(pack_nodes, mini):
    """Masks of Segment Captured."""

    def run(capture, latent, text="pumpkin", **options):
        options = {"clip": mini.clip, "decoder": mini.decoder, **options}
        return pack_nodes["LDZNetSegmentCaptured"].execute(capture, latent, text=text, **options).args[0]

    return run


@pytest.fixture
def passes(core, monkeypatch):
    """How many UNet passes are made for features."""
    backbone, made = core("backbones.comfy").ComfyBackbone, []
    extract = backbone.extract
    monkeypatch.setattr(backbone, "extract", lambda *given, **options: made.append(1) or extract(*given, **options))
    return made


def overheard(core, mini, model=None, positive=0, rows=1, **options):
    """The positive rows of every call of a plain sampling run, by plain hooks: {timestep: maps}."""
    comfy = core("backbones.comfy")
    taps = comfy.read_unet_config(mini.model).taps
    modules = {tap: comfy.transformer(mini.unet, tap) for tap in taps}
    calls, now = {}, {}

    def before(module, args, kwargs=None):
        now["t"], now["maps"] = int(args[1][0]), {}

    def hear(tap):
        def hook(module, given, output):
            now["maps"][tap] = output.clone()
            if len(now["maps"]) == len(taps) and now["t"] not in calls:
                calls[now["t"]] = [now["maps"][t] for t in taps]

        return hook

    handles = [mini.unet.register_forward_pre_hook(before)]
    handles += [module.register_forward_hook(hear(tap)) for tap, module in modules.items()]
    latent = mini.sample(model, **options)
    for handle in handles:
        handle.remove()
    return latent, calls


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [("euler", "normal"), ("heun", "normal"), ("dpmpp_2m", "karras"), ("dpmpp_sde", "normal"), ("ddim", "ddim_uniform"),
     ("uni_pc", "simple"), ("euler_ancestral", "exponential"), ("lcm", "sgm_uniform")],
)  # fmt: skip
def test_every_sampler_draws_the_same_with_capture(watched, mini, sampler, scheduler):
    model, capture = watched
    options = {"sampler": sampler, "scheduler": scheduler, "steps": 8, "seed": 3}
    assert torch.equal(mini.sample(**options)["samples"], mini.sample(model, **options)["samples"])
    assert hooks(mini.unet) == 0 and capture.run is None and len(capture.runs) == 1


def test_the_captured_maps_are_those_of_the_prompt_at_the_step_nearest_to_400(watched, mini, core):
    model, capture = watched
    plain, calls = overheard(core, mini, steps=20)
    latent = mini.sample(model, steps=20)
    features = capture.features(latent["samples"])
    nearest = min(calls, key=lambda t: abs(t - AIM))
    assert torch.equal(plain["samples"], latent["samples"])
    assert features.timestep == nearest and 300 <= nearest <= 500 and features.text == "caption"
    for captured, whole in zip(features.maps, calls[nearest], strict=True):
        assert torch.equal(captured, whole.chunk(2)[1])  # ComfyUI puts the negative prompt first


def test_without_guidance_there_is_only_the_prompt(watched, mini, core):
    model, capture = watched
    _, calls = overheard(core, mini, cfg=1.0, steps=20)
    features = capture.features(mini.sample(model, cfg=1.0, steps=20)["samples"])
    assert all(torch.equal(a, b) for a, b in zip(features.maps, calls[features.timestep], strict=True))


def test_calls_split_for_want_of_memory_are_put_right(watched, mini, monkeypatch):
    model, capture = watched
    whole = capture.features(mini.sample(model, steps=4)["samples"])
    monkeypatch.setattr(type(mini.model.model), "memory_required", lambda *given, **options: 1e30)
    rows = []
    handle = mini.unet.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    latent = mini.sample(model, steps=4)
    handle.remove()
    assert set(rows) == {1}
    split = capture.features(latent["samples"])
    off = [float((a - b).norm() / b.norm()) for a, b in zip(split.maps, whole.maps, strict=True)]
    assert max(off) < 1e-2  # rounding, in batches of another size; the negative prompt's rows are far off


def test_a_batch_has_a_row_an_image_and_may_be_parted_and_shuffled(watched, mini, find):
    model, capture = watched
    latent = mini.sample(model, steps=20, latent={"samples": torch.zeros(3, 4, 32, 32)})
    masks = find(capture, latent, "pumpkin | star")
    assert masks.shape == (6, 256, 256)
    samples = latent["samples"]
    swapped = find(capture, {"samples": samples[[2, 0]]}, "pumpkin | star")
    assert torch.allclose(swapped, masks[[4, 5, 0, 1]], atol=1e-4)


def test_a_prompt_for_a_part_of_the_picture_does_not_stand_for_the_whole(watched, mini, find, passes):
    import nodes

    model, capture = watched
    area = nodes.ConditioningSetArea().append(mini.prompt("a star"), 64, 64, 0, 0, 1.0)[0]
    both = nodes.ConditioningCombine().combine(area, mini.prompt("a pumpkin on a blue background"))[0]
    latent = mini.sample(model, steps=20, positive=both)
    features = capture.features(latent["samples"])
    assert features.maps[0].shape[-2:] == (8, 8)
    alone = mini.sample(model, steps=20, positive=area)
    assert capture.features(alone["samples"]) is None  # no call saw the whole latent: an extra pass is needed
    assert find(capture, alone).shape == (1, 256, 256) and passes == [1]


def test_nodes_that_change_tensors_in_place_do_not_change_what_was_captured(watched, mini, core):
    def free_u(h, skip, options):
        h[:, : h.shape[1] // 2] *= 1.4
        return h, skip

    model, capture = watched
    boosted = model.clone()
    boosted.set_model_output_block_patch(free_u)
    plain = mini.model.clone()
    plain.set_model_output_block_patch(free_u)
    expected, calls = overheard(core, mini, plain, steps=20)
    latent = mini.sample(boosted, steps=20)
    assert torch.equal(expected["samples"], latent["samples"])
    features = capture.features(latent["samples"])
    for captured, whole in zip(features.maps, calls[features.timestep], strict=True):
        assert torch.equal(captured, whole.chunk(2)[1])


def test_a_wrapper_that_was_there_before_still_wraps(pack_nodes, mini):
    calls = []

    def wrapper(apply, given):
        calls.append(1)
        return apply(given["input"], given["timestep"], **given["c"]) * 0.9

    wrapped = mini.model.clone()
    wrapped.set_model_unet_function_wrapper(wrapper)
    expected, count = mini.sample(wrapped)["samples"], len(calls)
    model, capture = pack_nodes["LDZNetCapture"].execute(wrapped).args
    latent = mini.sample(model)
    assert torch.equal(latent["samples"], expected) and len(calls) == 2 * count
    assert capture.features(latent["samples"]) is not None


def test_other_words_need_neither_sampling_nor_a_pass(watched, mini, find, passes):
    model, capture = watched
    latent = mini.sample(model, steps=20)
    pumpkin, cat = find(capture, latent, "pumpkin"), find(capture, latent, "cat")
    assert passes == [] and not torch.equal(pumpkin, cat)
    assert torch.allclose(find(capture, latent, "pumpkin | cat"), torch.cat([pumpkin, cat]), atol=1e-4)
    assert 0.02 < (pumpkin > 0.5).float().mean() < 0.7


def test_another_seed_gives_the_masks_of_its_own_picture(watched, mini, find, pack_nodes):
    model, capture = watched
    first, second = (mini.sample(model, seed=seed, steps=20) for seed in (0, 1))
    new_model, new_capture = pack_nodes["LDZNetCapture"].execute(mini.model).args
    alone = mini.sample(new_model, seed=1, steps=20)
    assert torch.equal(find(capture, second), find(new_capture, alone))
    assert not torch.equal(find(capture, first), find(capture, second))


def test_two_samplers_on_one_capture_are_kept_apart(watched, mini, find):
    model, capture = watched
    draft = mini.sample(model, seed=0, steps=20)
    alone = find(capture, draft)
    refined = mini.sample(model, seed=9, steps=20, latent=draft, denoise=0.6)
    assert torch.equal(find(capture, draft), alone)
    assert not torch.equal(find(capture, refined), alone)


def test_a_latent_that_the_capture_did_not_see_is_refused(watched, mini, find, core):
    model, capture = watched
    stranger = mini.sample(mini.model, seed=1)
    for _ in range(2):  # before and after the capture has seen anything
        with pytest.raises(core("errors").InputError, match="latent 1 of 1 is not one that this capture saw sampled"):
            find(capture, stranger)
        mini.sample(model, seed=0)


def test_an_interrupted_run_leaves_nothing(watched, mini, engine, find):
    model, capture = watched
    first = mini.sample(model, seed=0, steps=20)
    alone = find(capture, first)
    stored, held = list(capture.runs), capture.bytes

    def interrupt(*given):
        if given[0] >= 14:  # past the step that is kept
            engine.model_management.interrupt_current_processing(True)
            engine.model_management.throw_exception_if_processing_interrupted()

    with pytest.raises(engine.model_management.InterruptProcessingException):
        engine.sample.sample(
            model, torch.randn(1, 4, 32, 32), 20, 3.0, "euler", "normal", mini.prompt("cat"), mini.prompt(""),
            torch.zeros(1, 4, 32, 32), callback=interrupt, disable_pbar=True,
        )  # fmt: skip
    assert list(capture.runs) == stored and capture.bytes == held and hooks(mini.unet) == 0
    again = mini.sample(model, seed=0, steps=20)
    assert torch.equal(again["samples"], first["samples"]) and torch.equal(find(capture, again), alone)


@pytest.mark.parametrize(
    ("kind", "near", "steps", "denoise"), [("ldznet", 400, 2, 1.0), ("ldznet", 400, 4, 0.1), ("light", 50, 1, 1.0)]
)
def test_sampling_with_no_step_near_the_decoders_best_costs_an_extra_pass_and_says_so(
    watched, mini, find, passes, pack_nodes, caplog, kind, near, steps, denoise
):
    model, capture = watched
    decoder = pack_nodes["LDZNetLoadDecoder"].execute(f"miniature: {kind} (bundled)").args[0]
    start = mini.sample(seed=4) if denoise < 1 else None
    latent = mini.sample(model, steps=steps, denoise=denoise, latent=start)
    with caplog.at_level(logging.WARNING):
        masks = find(capture, latent, decoder=decoder)
    assert passes == [1] and f"no full step near timestep {near}" in caplog.text
    after = pack_nodes["LDZNetSegment"].execute(mini.model, mini.clip, decoder, "pumpkin", latent=latent).args[0]
    assert torch.equal(masks, after)


def test_a_light_decoder_reads_the_last_of_few_steps(watched, mini, find, passes):
    model, capture = watched
    find(capture, mini.sample(model, steps=4, denoise=0.1, latent=mini.sample(seed=4)))
    assert passes == []


def test_a_compiled_model_is_captured_or_read_in_an_extra_pass(pack_nodes, mini, find):
    compiled = mini.model.clone()
    compiled.add_object_patch("diffusion_model", torch.compile(mini.unet, backend="eager"))
    model, capture = pack_nodes["LDZNetCapture"].execute(compiled).args
    latent = mini.sample(model, steps=20)
    masks = find(capture, latent)
    plain_model, plain_capture = pack_nodes["LDZNetCapture"].execute(mini.model).args
    plain = find(plain_capture, mini.sample(plain_model, steps=20))
    agree = ((masks > 0.5) == (plain > 0.5)).float().mean()
    assert agree > 0.92  # a pass of its own has other noise and no caption
    assert hooks(mini.unet) == 0
    torch._dynamo.reset()


def test_inpainting_is_captured(watched, mini, find, passes):
    model, capture = watched
    latent = mini.sample(seed=0, steps=20)
    mask = torch.zeros(1, 256, 256)
    mask[:, :128] = 1
    inpainted = mini.sample(model, seed=5, steps=20, latent={**latent, "noise_mask": mask})
    assert find(capture, inpainted).shape == (1, 256, 256) and passes == []


def test_two_stages_are_captured_each_for_itself(watched, mini, find, passes):
    import nodes

    model, capture = watched
    prompts = (mini.prompt("a pumpkin on a blue background"), mini.prompt(""))
    blank = {"samples": torch.zeros(1, 4, 32, 32)}
    stage = nodes.KSamplerAdvanced().sample
    draft = stage(model, "enable", 0, 20, 3.0, "euler", "normal", *prompts, blank, 0, 8, "enable")[0]
    final = stage(model, "disable", 0, 20, 3.0, "euler", "normal", *prompts, draft, 8, 20, "disable")[0]
    assert find(capture, final).max() > 0.5 and passes == []


def test_the_memory_of_a_capture_is_bounded_and_small(watched, mini, core):
    model, capture = watched
    limits = core("backbones.comfy_capture")
    for seed in range(3):
        mini.sample(model, seed=seed, latent={"samples": torch.zeros(4, 4, 32, 32)})
    maps = sum(m.numel() * 4 for m in capture.features(mini.sample(model)["samples"]).maps)
    # What five layers ask the text with, and one its own picture with, at 16 x 16 positions of 64 channels; and for
    # light decoders what five layers ask with there, and five at 8 x 8, and the maps after them.
    queries = (5 + 2) * 16 * 16 * 64 * 4 + 2 * 5 * (16 * 16 + 8 * 8) * 64 * 4
    assert (maps, queries) == (73728, 1277952) and capture.bytes == 13 * (maps + queries)
    for seed in range(3, 6):
        mini.sample(model, seed=seed, latent={"samples": torch.zeros(4, 4, 32, 32)})
    assert len(capture.runs) == 25 and capture.bytes == 25 * maps + limits.QUERIES_KEPT * queries

    def asked():
        return sum(kept.queries is not None for kept in capture.runs.values())

    blank = torch.zeros(limits.LATENTS_KEPT + 2, 4, 8, 8)
    mini.sample(model, steps=2, cfg=1.0, latent={"samples": blank})
    assert len(capture.runs) == asked() == limits.LATENTS_KEPT + 2  # a batch is never torn
    mini.sample(model, steps=2, cfg=1.0)
    assert len(capture.runs) == limits.LATENTS_KEPT and asked() == limits.QUERIES_KEPT


def test_a_decoder_without_features_needs_no_capture(watched, mini, find, pack_nodes, passes):
    znet = pack_nodes["LDZNetLoadDecoder"].execute("miniature: znet (bundled)").args[0]
    masks = find(watched[1], mini.sample(steps=20), decoder=znet)
    assert passes == [] and masks.shape == (1, 256, 256)


def test_masks_have_the_size_of_an_image_that_is_given(watched, mini, find):
    model, capture = watched
    latent = mini.sample(model, steps=20)
    assert find(capture, latent, image=torch.rand(1, 192, 192, 3)).shape == (1, 192, 192)
