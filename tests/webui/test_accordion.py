"""The accordion's callbacks in the order in which a WebUI calls them, on fakes of the few names that they touch."""

import importlib
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
import webui_models
from PIL import Image
from studio import hooks

from ldznet_core import load_backbone

SIDE = 64  # pixels


class Script:
    def elem_id(self, name):
        return name


class Generation:
    """What a WebUI hands to every callback."""

    def __init__(self, **values):
        self.extra_generation_params, self.comments = {}, []
        self.seeds, self.prompts, self.negative_prompts = [1, 2], ["a cat", "a cat"], ["", ""]
        self.outpath_samples, self.batch_index, self.paste_to = "", 0, None
        vars(self).update(values)

    def comment(self, text):
        self.comments.append(text)

    def save_samples(self):
        return True


@pytest.fixture
def webui(made, tmp_path):
    """The accordion's module, the loaded model, and what was saved."""
    with pytest.MonkeyPatch.context() as patch:
        model = webui_models.a1111(patch, made)
        shared = sys.modules["modules.shared"]
        shared.opts.data |= {"ldznet_save": True}
        shared.state = SimpleNamespace(interrupted=False, skipped=False, job_count=0)
        shared.state.interrupt = lambda: setattr(shared.state, "interrupted", True)
        model.lowvram, saved = False, []
        webui_models.package(patch, "modules.scripts", Script=Script, AlwaysVisible=object())
        webui_models.package(patch, "modules.processing")
        webui_models.package(
            patch, "modules.images", save_image=lambda image, *args, suffix, **options: saved.append(suffix)
        )
        webui_models.package(patch, "modules.lowvram", is_enabled=lambda model: model.lowvram)
        webui_models.package(patch, "modules.paths", models_path=str(tmp_path))
        patch.setitem(sys.modules, "gradio", MagicMock())
        sys.modules.pop("ldznet_webui.accordion", None)
        accordion = importlib.import_module("ldznet_webui.accordion")
        yield SimpleNamespace(accordion=accordion, model=model, saved=saved, state=shared.state, script=None)
        sys.modules.pop("ldznet_webui.accordion", None)


def sample(webui, made, steps=(500, 300, 100)):
    """What AUTOMATIC1111's sampler does of two pictures: both prompts in one call, and its callback before each."""
    own, host = load_backbone(made / "mini.safetensors"), webui.accordion.host
    z = torch.randn(2, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(0))
    context = own.embed(["cat", "red apple", "", ""]).context
    conditionings = SimpleNamespace(batch=[[None], [None]])
    denoiser = SimpleNamespace(sampler=SimpleNamespace(sampler_extra_args={"cond": conditionings}))
    for timestep in steps:
        host.on_cfg_denoiser(SimpleNamespace(x=torch.cat([z, z]), denoiser=denoiser))
        with torch.inference_mode():
            webui.model.model.diffusion_model(torch.cat([z, z]), torch.full((4,), timestep), context)
    return z


def generate(webui, made, *args, steps=(500, 300, 100), redrawn=(), **values):
    """A generation of two pictures with these values of the accordion; returns it, and what is shown. Another
    extension draws something new in the pictures of the numbers in `redrawn`."""
    script, p = webui.accordion.Accordion(), Generation(**values)
    processed = SimpleNamespace(images=[], infotexts=[], extra_generation_params=p.extra_generation_params)
    script.process(p, *args)
    script.process_before_every_sampling(p, *args)
    latents = sample(webui, made, steps)
    script.post_sample(p, SimpleNamespace(samples=latents), *args)
    script.postprocess_batch(p, *args, images=torch.full((2, 3, SIDE, SIDE), 128 / 255), batch_number=0)
    for p.batch_index in range(2):
        grey = Image.new("RGB", (SIDE, SIDE), "grey")
        if p.batch_index in redrawn:
            grey.paste("red", (20, 20, 36, 36))
        pp = SimpleNamespace(image=grey)
        script.postprocess_image_after_composite(p, pp, *args)
        processed.images.append(pp.image)
        processed.infotexts.append("text")
    script.postprocess(p, processed, *args)
    return p, processed


@pytest.fixture
def passes(webui):
    """How many calls of the UNet there were, by their number of rows."""
    calls, network = [], webui.model.model.diffusion_model
    handle = network.register_forward_pre_hook(lambda network, args: calls.append(len(args[0])))
    yield calls
    handle.remove()


def test_switched_off_it_does_nothing(webui, made, passes):
    p, processed = generate(webui, made, False, "cat")
    assert len(processed.images) == 2 and passes == [4] * 3 and not p.extra_generation_params and not p.comments
    assert hooks(webui.model.model.diffusion_model) == 1  # the test's own


def test_masks_come_from_the_sampling(webui, made, passes):
    p, processed = generate(webui, made, True, "cat | red apple")
    assert len(processed.images) == len(processed.infotexts) == 2 + 2 * 3
    assert passes == [4] * 3 + [2] * 2  # noise only, which attention is compared with
    report = processed.extra_generation_params["LD-ZNet masks"]
    assert report["first"] == 2 and [one["phrases"] for one in report["pictures"]] == [["cat", "red apple"]] * 2
    assert p.extra_generation_params["LD-ZNet phrases"] == "cat | red apple"
    assert webui.saved == ["-mask-cat", "-mask-red-apple", "-mask-overlay"] * 2
    assert hooks(webui.model.model.diffusion_model) == 1 and p._ldznet is None


def test_a_sampling_that_shows_nothing_costs_a_pass(webui, made, passes):
    generate(webui, made, True, "cat", steps=(900,))
    assert passes == [4] + [2, 1] * 2


@pytest.mark.parametrize("kind", ["ldznet", "rgbnet"])
def test_decoders_read_the_sampling_or_the_picture(webui, made, passes, kind):
    folder = webui.accordion.host.decoders_folder()
    folder.mkdir()
    (folder / "own.safetensors").write_bytes((made / f"{kind}.safetensors").read_bytes())
    p, processed = generate(webui, made, True, "cat", "masks only", "own.safetensors", 0.0)
    assert passes == [4] * 3 and not p.comments and len(processed.images) == 6


def test_a_part_of_a_picture_is_not_taken_for_the_picture(webui, made, passes):
    generate(webui, made, True, "cat", paste_to=(0, 0, 8, 8))
    assert passes == [4] * 3 + [2, 1] * 2


def test_a_picture_that_another_extension_has_changed_costs_a_pass(webui, made, passes):
    generate(webui, made, True, "cat", redrawn=[1])
    assert passes == [4] * 3 + [2] + [2, 1]


@pytest.mark.parametrize(
    ("args", "note"),
    [
        ((True, " \n"), "no phrase was given: say what to find, for example 'cat'"),
        ((True, None), "no phrase was given: say what to find, for example 'cat'"),
        ((True, "cat", "masks only", "attention", float("nan")), "threshold must be a number from 0 to 1, got nan"),
        ((True, "cat", "masks only", "no.safetensors"), "no decoder 'no.safetensors' in "),
    ],
)
def test_what_makes_no_sense_is_said_once(webui, made, args, note):
    p, processed = generate(webui, made, *args)
    assert len(processed.images) == 2 and len(p.comments) == len(set(p.comments))
    assert processed.extra_generation_params["LD-ZNet note"].startswith(note)


def test_a_fault_of_ours_never_ends_the_generation(webui, made, monkeypatch):
    monkeypatch.setattr(webui.accordion, "find", lambda *args: 1 / 0)
    p, processed = generate(webui, made, True, "cat")
    assert "masks were not made (ZeroDivisionError" in p.comments[0] and len(processed.images) == 2
    assert hooks(webui.model.model.diffusion_model) == 0


def test_the_next_generation_takes_hooks_of_a_broken_one_away(webui):
    network, script = webui.model.model.diffusion_model, webui.accordion.Accordion()
    p = Generation()
    script.process(p, True, "cat")
    script.process_before_every_sampling(p, True, "cat")
    assert hooks(network) == 2
    script.process(p, False)
    assert hooks(network) == 0


def test_an_axis_of_the_plot_replaces_a_value(webui, made):
    p, _ = generate(webui, made, True, "cat", _ldznet_axes={"phrases": "red apple"})
    assert p.extra_generation_params["LD-ZNet phrases"] == "red apple"


def test_inpaint_prompts_of_another_picture_do_not_stay(webui):
    read = webui.accordion.reader("prompts")
    assert read({"LD-ZNet phrases": "cat", "LD-ZNet prompts": "a dog"}) == "a dog"
    assert read({"LD-ZNet phrases": "cat"}) == ""  # empties the box
    assert read({}) is None  # leaves it alone
    assert webui.accordion.reader("threshold") == "LD-ZNet threshold"
