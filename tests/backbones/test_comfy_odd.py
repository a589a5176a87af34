"""MODELs, guiders and latents that are not the usual: other noise schedules, packed weights, injected layers, several
GPUs, guiders with three prompts, latents with a frame axis."""

import logging
import threading
from types import SimpleNamespace

import pytest
import torch
from studio import hooks, park

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


@pytest.fixture
def newer(core):
    """An engine that has what these tests are about, injections and wrappers."""
    if core("backbones.comfy_capture").WrappersMP is None:
        pytest.skip("an engine of before December 2024")


@pytest.fixture
def z():
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def segment(pack_nodes, mini):
    def run(model=None, **options):
        options = {"text": "pumpkin", "timestep": 400, **options}
        return pack_nodes["LDZNetSegment"].execute(model or mini.model, mini.clip, mini.decoder, **options).args[0]

    return run


@pytest.fixture
def attend(pack_nodes, mini):
    def run(model=None, **options):
        return pack_nodes["LDZNetAttentionMask"].execute(
            mini.clip, "pumpkin", model=model or mini.model, presence=0.0, **options
        ).args[0]

    return run


# ---- noise schedules -----------------------------------------------------------------------------


def continuous(mini, kind):
    """The miniature under a schedule that counts no timesteps, as the stock node ModelSamplingContinuousEDM sets it."""
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM

    node = ModelSamplingContinuousEDM()
    result = (getattr(node, "execute", None) or node.patch)(mini.model, kind, 120.0, 0.002)
    return getattr(result, "args", result)[0]


def schedules(core):
    """Every kind of schedule of ComfyUI, by name."""
    kinds = core("backbones.comfy_model").model_sampling
    names = ("ModelSamplingDiscrete", "ModelSamplingDiscreteEDM", "ModelSamplingContinuousEDM",
             "ModelSamplingContinuousV", "ModelSamplingDiscreteFlow", "ModelSamplingFlux")  # fmt: skip
    return {name: getattr(kinds, name)() for name in names}


def test_a_timestep_becomes_a_noise_level_and_that_level_the_timestep(engine, core):
    model = core("backbones.comfy_model")
    for name, sampling in schedules(core).items():
        sigmas = [model.sigma_of(sampling, timestep) for timestep in (0, 10, 100, 400, 700, 999)]
        assert sigmas == sorted(sigmas) and 0 < sigmas[0] and sigmas[-1] < 1000, name
        assert len(set(sigmas)) == 6 or "Discrete" not in name
        back = [model.timestep_of(sampling, torch.tensor([s])) for s in sigmas]
        assert back[1:-1] == [10, 100, 400, 700] and back[0] <= 1 and back[-1] >= 998, (name, back)


@pytest.mark.parametrize("kind", ["edm_playground_v2.5", "v_prediction", "eps"])
def test_a_continuous_schedule_gives_finite_maps_that_differ_by_timestep(core, mini, z, kind):
    backbone = core("backbones.comfy").ComfyBackbone(continuous(mini, kind), mini.clip)
    text, tap = backbone.embed(["pumpkin"]), ("output_blocks.5",)
    maps = [backbone.extract(z, text, tap, timestep=t).maps[0] for t in (10, 400, 700)]
    assert all(m.isfinite().all() for m in maps)
    assert not torch.equal(maps[0], maps[1]) and not torch.equal(maps[1], maps[2])


def test_sampling_under_a_continuous_schedule_is_captured_near_400(pack_nodes, mini):
    model, capture = pack_nodes["LDZNetCapture"].execute(continuous(mini, "v_prediction")).args
    latent = mini.sample(model, steps=8, scheduler="karras")
    features, queries = capture.features(latent["samples"]), capture.queries(latent["samples"])
    assert 200 <= features.timestep <= 600 and len(queries.cross) == 5


def broken(mini):
    """The miniature with a layer that puts out NaN, as half precision that overflows does."""
    handle = mini.unet.input_blocks[1][0].register_forward_hook(lambda module, args, out: out * float("nan"))
    return SimpleNamespace(mend=handle.remove)


@pytest.mark.parametrize("method", ["segment", "attention", "noise"])
def test_values_that_are_not_finite_are_an_error_and_never_an_empty_mask(mini, segment, attend, core, z, method):
    fault = broken(mini)
    try:
        with pytest.raises(core("errors").InputError, match="not finite .NaN or infinity. at timestep"):
            segment(latent={"samples": z}) if method == "segment" else attend(latent={"samples": z}, method=method)
    finally:
        fault.mend()


def test_a_run_with_values_that_are_not_finite_is_not_kept(mini, pack_nodes, caplog):
    model, capture = pack_nodes["LDZNetCapture"].execute(mini.model).args
    fault = broken(mini)
    try:
        latent = mini.sample(model, steps=4)
    finally:
        fault.mend()
    with caplog.at_level(logging.WARNING):
        assert capture.features(latent["samples"]) is None and capture.queries(latent["samples"]) is None
    assert "not finite" in caplog.text and "more steps" not in caplog.text


def test_a_latent_with_nan_is_refused(segment, core, z):
    with pytest.raises(core("errors").InputError, match="values that are not finite"):
        segment(latent={"samples": z * float("nan")})


# ---- what the network is made of -----------------------------------------------------------------


class Packed(torch.Tensor):
    """A weight of 4 bits, two to a byte, which tells its logical shape as GGUF's tensors do."""

    def detach(self):
        return self


def test_sizes_are_those_of_the_logical_shapes(mini, core):
    network, model = torch.nn.Module(), core("backbones.comfy_model")
    packed = torch.zeros(6, 2, dtype=torch.uint8).as_subclass(Packed)
    packed.tensor_shape = torch.Size([6, 4])
    network.weight = torch.nn.Parameter(packed, requires_grad=False)
    network.register_buffer("scale", torch.ones(3))
    assert model.logical_shapes(network) == {"weight": (6, 4), "scale": (3,)}
    assert tuple(network.state_dict()["weight"].size()) == (6, 2)
    shapes = model.logical_shapes(mini.unet)
    assert shapes == {name: tuple(value.shape) for name, value in mini.unet.state_dict().items()}


def test_reading_the_facts_of_a_model_warns_of_nothing(engine, core, mini, caplog):
    import comfy.supported_models as families

    model = mini.model.clone()
    model.model = SimpleNamespace(**{**vars(mini.model.model), "model_config": families.SD15({})})
    parts = {name: mini.model.get_model_object(name) for name in ("diffusion_model", "model_sampling", "latent_format")}
    model.get_model_object = parts.get
    facts = core("backbones.comfy_model").read_facts(model)
    assert (facts.family, facts.native_area, facts.channels, facts.has_frames) == ("SD15", 512**2, 4, False)
    assert not caplog.records


class Extra(torch.nn.Module):
    """What a motion module does to a UNet that is loaded: it halves a map, and has a layer of a UNet's name."""

    def __init__(self):
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(4)

    def forward(self, x, *args, **kwargs):
        return x * 0.5


@pytest.fixture
def injected(newer, mini):
    from comfy.patcher_extension import PatcherInjection

    def inject(patcher):
        patcher.model.diffusion_model.input_blocks[1].append(Extra())

    def eject(patcher):
        block = patcher.model.diffusion_model.input_blocks[1]
        if isinstance(block[-1], Extra):
            block.pop(len(block) - 1)

    model = mini.model.clone()
    model.set_injections("motion", [PatcherInjection(inject, eject)])
    return model


def test_injected_layers_change_neither_masks_nor_sizes(injected, segment, attend, core, mini, z):
    from comfy import model_management

    latent, model = {"samples": z}, core("backbones.comfy_model")
    before = segment(latent=latent), attend(latent=latent)
    assert torch.equal(segment(injected, latent=latent), before[0])
    assert torch.equal(attend(injected, latent=latent), before[1])
    model_management.load_models_gpu([injected])  # as a sampler leaves it
    assert any(isinstance(layer, Extra) for layer in mini.unet.input_blocks[1])
    model._sizes.clear()
    assert model.read_unet_config(injected).channel_mult
    assert torch.equal(segment(injected, latent=latent), before[0])
    assert not any(isinstance(layer, Extra) for layer in mini.unet.input_blocks[1])


# ---- several GPUs --------------------------------------------------------------------------------


@pytest.fixture
def two_devices(engine, mini):
    """The miniature on two devices that work at the same time (both of them CPUs), as MultiGPU Work Units does it."""
    model = mini.model.clone()
    if not hasattr(model, "deepclone_multigpu"):
        pytest.skip("an engine that runs no model on several GPUs at once")
    second = model.deepclone_multigpu(new_load_device=torch.device("cpu", 0))
    second.is_multigpu_base_clone = True
    model.set_additional_models("multigpu", [second])
    model.match_multigpu_clones()
    return model


def ends(work, seconds=100):
    """What `work` gives; fails where it does not end in time."""
    results, errors = [], []

    def run():
        with torch.inference_mode():
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors[0]
    return results[0]


def test_masks_are_the_same_on_several_gpus(two_devices, segment, attend, z):
    latent = {"samples": z}
    assert torch.equal(ends(lambda: segment(two_devices, latent=latent)), segment(latent=latent))
    assert torch.equal(ends(lambda: attend(two_devices, latent=latent)), attend(latent=latent))


def test_sampling_on_several_gpus_is_captured_and_can_be_interrupted(two_devices, mini, pack_nodes, engine):
    model, capture = pack_nodes["LDZNetCapture"].execute(two_devices).args
    alone, plain = pack_nodes["LDZNetCapture"].execute(mini.model).args
    latent, expected = ends(lambda: mini.sample(model, steps=4)), mini.sample(alone, steps=4)
    assert torch.allclose(latent["samples"], expected["samples"], atol=1e-4)
    found, maps = capture.features(latent["samples"]), plain.features(expected["samples"])
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(found.maps, maps.maps, strict=True))

    management = engine.model_management
    handle = mini.unet.register_forward_pre_hook(lambda *given: management.interrupt_current_processing(True))
    with pytest.raises(management.InterruptProcessingException):
        ends(lambda: mini.sample(model, steps=4))
    handle.remove()
    management.interrupt_current_processing(False)
    assert hooks(mini.unet) == 0 and capture.run is None


# ---- prompts and latents -------------------------------------------------------------------------


def sample_with_three_prompts(engine, mini, model, kind=None):
    """Stock DualCFGGuider, which hands the sampler [negative, middle, positive], or another guider like it."""
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    guider = (kind or Guider_DualCFG)(model)
    prompts = ("a pumpkin on a blue background", "a blue background", "cat")
    guider.set_conds(*map(mini.prompt, prompts))
    guider.set_cfg(4.0, 4.0)
    sigmas = engine.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 4)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    sampler = engine.samplers.sampler_object("euler")
    return guider.sample(noise, torch.zeros(1, 4, 16, 16), sampler, sigmas, disable_pbar=True, seed=1)


def test_of_three_prompts_the_positive_one_is_captured(newer, engine, mini, pack_nodes, core):
    model, capture = pack_nodes["LDZNetCapture"].execute(mini.model).args
    inputs, network = {}, mini.unet
    handle = network.register_forward_pre_hook(
        lambda module, args: inputs.update({int(args[1][0]): (args[0][:1].clone(), args[1][:1])})
    )
    latent = sample_with_three_prompts(engine, mini, model)
    handle.remove()
    features = capture.features(latent)
    x, t = inputs[features.timestep]  # the call of that step again, with the positive prompt alone
    context = mini.prompt("a pumpkin on a blue background")[0][0]
    tap = features.taps[-1]
    block, maps = core("backbones.comfy").transformer(network, tap), []
    handle = block.register_forward_hook(lambda module, args, out: maps.append(out.clone()))
    network(x, t, context=context)
    handle.remove()
    assert torch.allclose(features.maps[-1], maps[0], atol=1e-3)


def test_where_the_positive_prompt_is_not_known_nothing_is_captured(engine, mini, pack_nodes, caplog):
    from comfy_extras import nodes_custom_sampler as stock

    class Copying(stock.Guider_DualCFG):
        def predict_noise(self, x, timestep, model_options, seed=None):
            prompts = [list(self.conds[name]) for name in ("negative", "middle", "positive")]
            return engine.samplers.calc_cond_batch(self.inner_model, prompts, x, timestep, model_options)[2]

    model, capture = pack_nodes["LDZNetCapture"].execute(mini.model).args
    latent = sample_with_three_prompts(engine, mini, model, Copying)
    with caplog.at_level(logging.WARNING):
        assert capture.features(latent) is None
    assert "which of them is the positive one is not known" in caplog.text


def test_latents_with_an_axis_for_frames_are_those_of_pictures(segment, pack_nodes, mini, core, z):
    flat = segment(latent={"samples": z})
    assert torch.equal(segment(latent={"samples": z[:, :, None]}), flat)
    with pytest.raises(core("errors").InputError, match="video latents of 5 frames"):
        segment(latent={"samples": z[:, :, None].expand(-1, -1, 5, -1, -1)})
    model, capture = pack_nodes["LDZNetCapture"].execute(mini.model).args
    latent = mini.sample(model, steps=4)["samples"]
    assert len(capture.features(latent[:, :, None]).maps[0]) == 1


def test_an_image_is_encoded_without_a_seed_only(core, mini):
    backbone = core("backbones.comfy").ComfyBackbone(mini.model, mini.clip, mini.vae)
    with pytest.raises(core("errors").InputError, match="mean of its posterior and no sample"):
        backbone.encode(park(), seed=1)


def test_the_parts_of_the_miniature_can_be_copied_to_other_devices(mini):
    for part in (mini.model, mini.clip.patcher, mini.vae.patcher):
        make, arguments = part.cached_patcher_init
        copy = make(*arguments)
        state = part.model.state_dict()
        assert copy.model is not part.model
        assert all(torch.equal(value, state[name]) for name, value in copy.model.state_dict().items())
