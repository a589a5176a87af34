"""The noise schedule is Stable Diffusion's, and predictions split into signal and noise exactly."""

import pytest
import torch

from ldznet_core.networks.schedule import Schedule


def test_alphas_are_those_of_stable_diffusion():
    a = Schedule.stable_diffusion().alphas_cumprod
    assert a.shape == (1000,)
    assert a[[300, 400, 499]].tolist() == pytest.approx([0.590501, 0.424483, 0.277670], abs=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_perfect_prediction_gives_back_latent_and_noise(prediction):
    schedule = Schedule.stable_diffusion(prediction)
    z, noise, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 400, 900])
    z_t = schedule.add_noise(z, noise, t)
    target = noise if prediction == "eps" else schedule.velocity(z, noise, t)
    clean, found = schedule.split(target, z_t, t)
    assert torch.allclose(clean, z, atol=1e-4)
    assert torch.allclose(found, noise, atol=1e-4)


def test_sampling_with_a_perfect_network_ends_at_the_latent():
    schedule = Schedule.stable_diffusion("v")
    z, noise = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    steps = schedule.steps(7)
    start = schedule.add_noise(z, noise, torch.tensor([steps[0]]))
    seen, latents = zip(*schedule.ddim(lambda z_t, t: schedule.velocity(z, noise, t), start, steps), strict=True)
    assert seen == tuple(steps) and steps[0] == 999 and steps[-1] == 0
    assert torch.allclose(latents[-1], z, atol=1e-3)
