"""What is bundled works as it comes: small enough, says what it is, and finds the things in README's picture."""

from pathlib import Path

import pytest
import torch

from ldznet_core import InputError, Segmenter, load_backbone, load_decoder
from ldznet_core.checkpoints.bundled import BUNDLED
from ldznet_core.imaging.images import read_image, to_tensor
from ldznet_core.mini.drawing import generate
from ldznet_core.segment.base import PRESENT

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "park.png"
PLACES = {"panda": (18, 112, 136, 222), "pumpkin": (134, 22, 240, 126), "ladybug": (152, 138, 240, 228)}


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("mini")


def test_the_weights_take_at_most_84_megabytes():
    assert sum(p.stat().st_size for p in BUNDLED.rglob("*") if p.is_file()) <= 84_000_000


def test_the_model_says_how_it_was_trained(backbone):
    about = backbone.model.about
    assert about["size"] == 256 and len(about["nouns"]) == 32 and about["prediction"] == "v"
    assert about["trained"]["device"] == "cpu" and about["trained"]["samples"] > 0


def test_latents_have_zero_mean_and_unit_variance_within_reason(backbone):
    z = backbone.encode(to_tensor(read_image(PICTURE)))
    assert z.shape == (1, 4, 32, 32)
    assert z.mean().abs() < 0.7 and 0.4 < z.std() < 1.6


def test_a_ground_alone_is_drawn_empty(backbone):
    captions = [f"a {colour} background" for colour in ("white", "blue", "pink", "purple")]
    pictures = torch.from_numpy(generate(backbone, captions, 256, seed=40)).float()  # [4, 256, 256, 3]
    ground = pictures.flatten(1, 2).median(1).values[:, None, None]  # [4, 1, 1, 3]
    apart = ((pictures - ground).abs().amax(-1) > 40).float().mean((1, 2))
    assert apart.max() < 0.05


@pytest.fixture(scope="module", params=["ldznet", "znet", "light"])
def segment(request, backbone):
    return Segmenter(backbone, load_decoder("mini", kind=request.param))


def test_each_thing_is_found_where_it_is(segment):
    masks = segment(read_image(PICTURE), list(PLACES))[0]  # [3, 256, 256]
    for mask, (left, top, right, bottom) in zip(masks, PLACES.values(), strict=True):
        inside = mask[top:bottom, left:right] > 0.5
        assert inside.float().mean() > 0.4  # the rest of the box is grass, or unsure
        assert inside.sum() > 0.9 * (mask > 0.5).sum()


def test_what_is_not_there_gets_no_mask(segment):
    found = segment.predict(read_image(PICTURE), ["car", "star", "frog", "umbrella"])
    marked = (found.present(PRESENT) > 0.5).float().mean((2, 3))
    if found.presence is not None:
        assert marked.max() == 0
    else:  # a look-alike may be marked
        assert marked.mean() < 0.03 and marked.max() < 0.1


def test_one_set_of_features_serves_all_phrases(backbone):
    decoder = load_decoder("mini")
    phrase = Segmenter(backbone, decoder, text="phrase")(read_image(PICTURE), list(PLACES))
    empty = Segmenter(backbone, decoder)(read_image(PICTURE), list(PLACES))
    both = ((phrase > 0.5) & (empty > 0.5)).sum() / ((phrase > 0.5) | (empty > 0.5)).sum()
    assert both > 0.7


def test_the_baseline_is_not_bundled_and_the_error_says_how_to_get_it():
    with pytest.raises(InputError, match="no rgbnet is bundled.*ldznet mini build"):
        load_decoder("mini", kind="rgbnet")


def test_transformers_own_class_holds_the_text_encoder(backbone):
    transformers = pytest.importorskip("transformers")
    text, config = backbone.model.text, backbone.model.text.config
    theirs = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            eos_token_id=backbone.model.tokenizer.end,
        )
    ).eval()
    names = theirs.state_dict().keys()
    own = {k if k in names else k.removeprefix("text_model."): v for k, v in text.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(own, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing)
    tokens = torch.tensor([backbone.model.tokenizer.encode("a red apple on grass")])
    with torch.inference_mode():
        assert torch.allclose(theirs(tokens).last_hidden_state, text(tokens), atol=1e-4)
