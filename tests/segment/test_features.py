"""Outputs of a backbone's parts on noised latents."""

import pytest
import torch

from ldznet_core import load_backbone
from ldznet_core.backbones.recording import Features, tapped
from ldznet_core.errors import InputError
from ldznet_core.segment.features import noised_outputs, padded_features


@pytest.fixture
def backbone(made):
    return load_backbone(made / "mini.safetensors")


def test_each_row_is_noised_to_its_own_timestep(backbone):
    taps, z = backbone.unet_config.taps, torch.ones(2, 4, 8, 8)
    text, timesteps, noise = backbone.embed(["cat", "apple"]), torch.tensor([300, 450]), torch.full((2, 4, 8, 8), 0.5)
    modules = {tap: tapped(backbone.transformer, tap) for tap in taps}
    outputs = noised_outputs(backbone, z, noise, timesteps, text, modules)
    z_t = backbone.schedule.add_noise(z, noise, timesteps)
    for tap, expected in zip(taps, backbone.model.unet.extract(z_t, timesteps, text.context, taps), strict=True):
        assert torch.allclose(outputs[tap], expected, atol=1e-5)


def test_a_module_that_the_pass_leaves_out_is_named(backbone):
    z, text = torch.zeros(1, 4, 8, 8), backbone.embed(["cat"])
    with pytest.raises(InputError, match="without passing elsewhere"):
        noised_outputs(backbone, z, z, torch.tensor([300]), text, {"elsewhere": torch.nn.Identity()})


def test_features_of_odd_latents_are_padded_as_the_latents_are():
    """A latent of 3 x 2 positions that is padded to 4 x 4: queries on its own grid, a map on half of it."""
    queries = torch.arange(6.0)[None, :, None]  # [1, 3 x 2, 1]
    halved = torch.tensor([[[[10.0], [20.0]]]])  # [1, 1, 2, 1]
    padded = padded_features(Features((queries, halved), ("a", "b"), 50, "caption"), (3, 2), (4, 4))
    assert padded.maps[0][0, 0].tolist() == [[0, 1, 1, 1], [2, 3, 3, 3], [4, 5, 5, 5], [4, 5, 5, 5]]
    assert padded.maps[1][0, 0].tolist() == [[10, 10], [20, 20]]
    assert (padded.taps, padded.timestep) == (("a", "b"), 50)
