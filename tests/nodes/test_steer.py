"""A prompt that acts where words are being drawn: it draws there, changes nothing else, and leaves nothing behind."""

import pytest
import torch
from studio import CHANGE, hooks

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes", "has_hooks")

SAMPLERS = [
    ("euler", "normal"), ("heun", "normal"), ("dpmpp_2m", "karras"), ("dpmpp_sde", "normal"), ("ddim", "ddim_uniform"),
    ("uni_pc", "simple"), ("euler_ancestral", "exponential"), ("lcm", "sgm_uniform"),
]  # fmt: skip


def test_it_changes_the_picture_where_the_words_are(draw, changes, marked, light):
    there, elsewhere = changes(draw(seed=5), draw(marked(decoder=light, feather=0.0), seed=5))
    assert there > 1 and elsewhere < 0.1 * there


@pytest.mark.parametrize(("sampler", "scheduler"), SAMPLERS)
def test_without_share_every_sampler_draws_as_without_it(draw, marked, sampler, scheduler):
    options = {"sampler": sampler, "scheduler": scheduler, "steps": 3}
    plain = draw(**options)
    assert torch.equal(plain, draw(marked(strength=0.0), **options))
    assert not torch.equal(plain, draw(marked(), **options))


def test_words_that_are_not_drawn_change_nothing(draw, marked, light):
    assert torch.equal(draw(), draw(marked("banana", decoder=light)))
    assert torch.equal(draw(), draw(marked(start=1.0)))


def test_each_picture_of_a_batch_has_its_own_region(draw, marked, light):
    blank = {"samples": torch.zeros(4, 4, 32, 32)}
    plain, steered = draw(latent=blank, seed=2), draw(marked(decoder=light), latent=blank, seed=2)
    places = ((plain - steered).abs().amax(1) > 0.5).flatten(1)
    assert places.any(1).all() and len({tuple(place) for place in places.tolist()}) == 4


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_alone_it_draws_everywhere(draw, marked, mini, cfg):
    alone = mini.sample(positive=marked(start=1.0), steps=3, cfg=cfg)["samples"]
    assert torch.equal(alone, mini.sample(positive=mini.prompt(CHANGE), steps=3, cfg=cfg)["samples"])
    held = mini.sample(positive=marked(), steps=3, cfg=cfg)["samples"]
    assert torch.allclose(held, alone, atol=1e-4)


def test_an_interrupted_run_leaves_nothing(draw, marked, mini, interrupt):
    plain, region, options = draw(), marked(follow=True), str(mini.model.model_options)
    interrupt(lambda: draw(region), calls=4)
    assert hooks(mini.unet) == 0 and str(mini.model.model_options) == options
    assert torch.equal(draw(), plain)
    assert torch.equal(draw(region), draw(region))


def test_with_capture_the_same_is_drawn(draw, marked, pack_nodes, mini):
    model, capture = pack_nodes["LDZNetCapture"].execute(mini.model).args
    steered = draw(marked(), model=model)
    assert torch.equal(steered, draw(marked())) and capture.queries(steered) is not None


def test_several_regions_share_the_calls_of_the_unet(draw, marked, mini, monkeypatch):
    rows, forward = [], type(mini.unet).forward
    monkeypatch.setattr(type(mini.unet), "forward", lambda *a, **k: rows.append(len(a[1])) or forward(*a, **k))
    draw([*marked(), *marked("panda", "a star on a blue background")])
    assert rows == [2, 4, 4, 4, 4]  # negative and positive; then the regions, in the same call


def test_what_is_no_prompt_is_refused(pack_nodes, mini):
    node = pack_nodes["LDZNetConditioningSetWords"]
    for conditioning in (None, [], "a text", [1]):
        with pytest.raises(Exception, match="conditioning"):
            node.execute(conditioning, mini.clip, "balloon")
    with pytest.raises(Exception, match="strength must be a number"):
        node.execute(mini.prompt(CHANGE), mini.clip, "balloon", strength=float("nan"))
    with pytest.raises(Exception, match="phrase"):
        node.execute(mini.prompt(CHANGE), mini.clip, " ")


def test_a_lora_acts_in_the_region_only(draw, changes, marked, mini, light):
    """A hook that negates the UNet's last layer would wreck the whole picture."""
    from comfy import hooks as comfy_hooks

    name = "diffusion_model.out.2.weight"
    key = mini.model.model.state_dict()[name]
    hook, group = comfy_hooks.WeightHook(), comfy_hooks.HookGroup()
    hook.weights, hook.weights_clip, hook.need_weight_init = {name: (-2 * key,)}, {}, False
    group.add(hook)
    hooked = comfy_hooks.set_hooks_for_conditioning(marked(decoder=light, feather=0.0), group)
    plain = draw()
    there, elsewhere = changes(draw(seed=5), draw(hooked, seed=5))
    assert there > 1 and elsewhere < 0.2 * there
    assert torch.equal(draw(), plain)


def test_in_a_mask_of_its_own_it_acts_there_only(draw, marked):
    mask = torch.zeros(1, 16, 16)
    masked = [[context, {**options, "mask": mask, "mask_strength": 1.0}] for context, options in marked()]
    assert torch.allclose(draw(masked), draw(), atol=1e-4)
