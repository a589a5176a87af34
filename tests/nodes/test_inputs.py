"""What nodes take of other packs: tensors of any dimensions and dtype, lists, None and NaN work or are refused in one
sentence."""

import pytest
import torch
from studio import park

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")

NAN = float("nan")


def square() -> torch.Tensor:
    """A mask [1, 64, 96] with a rectangle of 1536 pixels in it."""
    mask = torch.zeros(1, 64, 96)
    mask[:, 16:48, 24:72] = 1
    return mask


def picture(batch=1) -> torch.Tensor:
    """A picture [B, 64, 96, 3]: a bright rectangle where `square` is."""
    return (0.2 + 0.6 * square()[..., None]).expand(batch, -1, -1, 3)


@pytest.fixture
def refine(pack_nodes):
    return lambda mask, image, **options: pack_nodes["LDZNetRefineMask"].execute(mask, image, **options).args[0]


@pytest.fixture
def labels(pack_nodes):
    return lambda masks, text, **options: pack_nodes["LDZNetLabelMap"].execute(masks, text, **options).args


@pytest.fixture
def segment(pack_nodes, mini):
    def run(**options):
        sockets = {"model": mini.model, "clip": mini.clip, "decoder": mini.decoder, "vae": mini.vae}
        return pack_nodes["LDZNetSegment"].execute(**{**sockets, "text": "panda", **options}).args

    return run


@pytest.fixture
def attend(pack_nodes, mini):
    def run(**options):
        sockets = {"model": mini.model, "clip": mini.clip, "vae": mini.vae, "presence": 0.0}
        return pack_nodes["LDZNetAttentionMask"].execute(**{**sockets, "text": "panda", **options}).args

    return run


@pytest.fixture
def refused(core):
    return lambda message: pytest.raises(core("errors").InputError, match=message)


@pytest.mark.parametrize(
    "odd",
    [
        square()[0], square()[:, None], square()[..., None], square() > 0.5, square().byte(), square().byte() * 255,
        square().int() * 65535, square().half(), square().bfloat16(), square().double(), square() * 1.2 - 0.1,
    ],
    ids=["2d", "b1hw", "bhw1", "bool", "uint8 flags", "uint8", "16 bit", "half", "bfloat16", "double", "overshoot"],
)
def test_a_mask_of_any_form_is_the_same_mask(refine, labels, odd):
    refined = refine(odd, picture())
    assert refined.dtype == torch.float32 and refined.shape == (1, 64, 96)
    assert torch.equal(refined, refine(square(), picture()))
    assert refined.sum() == pytest.approx(1536, rel=0.02)
    _, kept = labels(odd, "cat")
    assert torch.equal(kept, square())


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (None, "mask is empty: nothing is connected"),
        ([square()], r"mask must be \[H, W\], .*, got a list"),
        (square() * NAN, r"mask \[1, 64, 96\] has values that are not finite"),
        (square() * 255, "mask .* has values from 0 to 255: scale them to 0..1"),
        (square()[..., None].expand(-1, -1, -1, 3), r"got \[1, 64, 96, 3\]: an image becomes a mask in Convert"),
        (square()[0, 0], r"got \[96\]"),
        (square()[:, :0], r"got \[1, 0, 96\]"),
        (square()[None, None], r"got \[1, 1, 1, 64, 96\]"),
        (-square().int(), "from -1 to 0"),
    ],
    ids=["none", "list", "nan", "255", "image", "1d", "no rows", "5d", "negative"],
)
def test_what_is_no_mask_is_refused(refine, refused, odd, message):
    with refused(message):
        refine(odd, picture())


@pytest.mark.parametrize(
    "odd",
    [
        picture()[0], picture()[..., :1], torch.cat([picture(), picture()[..., :1]], -1), picture().double(),
        picture()[0, ..., :1],
    ],
    ids=["hwc", "grey", "rgba", "double", "hw1"],
)
def test_an_image_of_any_form_is_the_same_image(refine, odd):
    assert torch.equal(refine(square(), odd), refine(square(), picture()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16], ids=["uint8", "half"])
def test_an_image_of_less_precision_is_nearly_the_same(segment, dtype):
    odd = (park() * 255).round().byte() if dtype == torch.uint8 else park().half()
    assert (segment(image=odd)[0] - segment(image=park())[0]).abs().mean() < 1e-3


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (None, "image is empty: nothing is connected"),
        (picture() * NAN, r"image \[1, 64, 96, 3\] has values that are not finite"),
        (picture() * 300, "image .* has values from 60 to 240"),
        (picture().permute(0, 3, 1, 2), r"image must be .* with 1, 3 or 4 channels, got \[1, 3, 64, 96\]"),
        (picture()[..., :2], r"got \[1, 64, 96, 2\]"),
        ([picture()], "got a list"),
    ],
    ids=["none", "nan", "255", "channels first", "two channels", "list"],
)
def test_what_is_no_image_is_refused(refine, refused, odd, message):
    with refused(message):
        refine(square(), odd)


def test_one_mask_serves_every_image_and_one_image_every_mask(refine):
    alone = refine(square(), picture())
    assert torch.equal(refine(square(), picture(2)), alone.repeat(2, 1, 1))
    assert torch.equal(refine(square().repeat(3, 1, 1), picture()), alone.repeat(3, 1, 1))


def test_no_masks_in_no_masks_out(refine, labels):
    assert refine(square()[:0], picture()).shape == (0, 64, 96)
    assert refine(square()[:0], picture(2)).shape == (0, 64, 96)
    assert refine(square(), picture()[:0]).shape == (0, 64, 96)
    maps, kept = labels(square()[:0], "cat | dog")
    assert maps.shape == (0, 64, 96, 3) and kept.shape == (0, 64, 96)


def test_three_masks_for_no_image_are_refused(refine, refused):
    with refused("3 masks do not go with 0 images"):
        refine(square().repeat(3, 1, 1), picture()[:0])


@pytest.mark.parametrize("node", ["segment", "attend"])
def test_no_images_or_latents_in_no_masks_out(request, node):
    run = request.getfixturevalue(node)
    nothing = {"image": picture()[:0]}, {"latent": {"samples": torch.zeros(0, 4, 8, 12)}}
    for given in nothing:
        masks, union, overlay, reach = run(text="cat | dog", **given)
        assert masks.shape == union.shape == (0, 64, 96) and overlay.shape == (0, 64, 96, 3) and reach > 0


def test_nothing_captured_gives_no_masks(pack_nodes, mini):
    capture = pack_nodes["LDZNetCapture"].execute(mini.model).args[1]
    latent = {"samples": torch.zeros(0, 4, 8, 12)}
    masks = pack_nodes["LDZNetSegmentCaptured"].execute(capture, latent, mini.clip, mini.decoder, "cat").args[0]
    assert masks.shape == (0, 64, 96)


@pytest.mark.parametrize(
    "text", [["panda", "pumpkin"], ("panda", "pumpkin"), ["panda | pumpkin"], "panda\r\npumpkin\r\n"]
)
def test_a_list_of_texts_is_a_list_of_phrases(labels, text):
    masks = torch.stack([square()[0], 1 - square()[0]])
    maps, kept = labels(masks, text)
    assert torch.equal(kept, masks) and torch.equal(maps, labels(masks, "panda | pumpkin")[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "text must be a text or a list of texts, but holds None"),
        (5, "but holds 5: connect a STRING"),
        (["panda", None], "but holds None"),
        ({"panda": 1}, "but holds a dict"),
        (b"panda", "but holds a bytes"),
        ([], "no phrase was given"),
        (["", " "], "no phrase was given"),
    ],
)
def test_what_is_no_text_is_refused(labels, segment, refused, text, message):
    with refused(message):
        labels(square(), text)
    with refused(message):
        segment(text=text, image=park())


@pytest.mark.parametrize("name", ["model", "clip", "decoder"])
def test_segment_says_what_is_missing(segment, refused, name):
    with refused(f"^{name} is empty: nothing is connected, or the file .* has none; connect [A-Z]+ of"):
        segment(image=park(), **{name: None})


def test_the_other_nodes_say_what_is_missing(pack_nodes, attend, mini, refused):
    with refused("clip is empty"):
        attend(image=park(), clip=None)
    with refused("model is empty"):
        pack_nodes["LDZNetCapture"].execute(None)
    capture = pack_nodes["LDZNetCapture"].execute(mini.model).args[1]
    sockets = {"capture": capture, "latent": {"samples": torch.zeros(1, 4, 8, 8)}, "clip": mini.clip,
               "decoder": mini.decoder, "text": "cat"}
    for name in ("capture", "latent", "clip", "decoder"):
        with refused(f"^{name} is empty"):
            pack_nodes["LDZNetSegmentCaptured"].execute(**{**sockets, name: None})


@pytest.mark.parametrize("latent", [{}, {"samples": None}, torch.zeros(1, 4, 8, 8), {"samples": [0.0]}])
def test_what_is_no_latent_is_refused(segment, attend, refused, latent):
    for run in (segment, attend):
        with refused("latent must be a LATENT with a tensor of samples"):
            run(latent=latent)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.full((1, 4, 8, 8), NAN), r"latent \[1, 4, 8, 8\] has values that are not finite"),
        (torch.zeros(1, 4, 8, 0), r"latent of shape \[1, 4, 8, 0\] is empty"),
        (torch.zeros(4, 8, 8), r"the latent is of shape \[4, 8, 8\]"),
    ],
)
def test_latents_that_hold_nothing_to_read_are_refused(segment, attend, refused, samples, message):
    for run in (segment, attend):
        with refused(message):
            run(latent={"samples": samples})


@pytest.mark.parametrize(("name", "other"), [("model", "decoder"), ("clip", "model"), ("decoder", "model")])
def test_a_thing_of_another_kind_is_refused_by_name(segment, mini, refused, name, other):
    with refused(f"^{name} is something else, a ModelPatcher: connect"):
        segment(image=park(), **{name: getattr(mini, other)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": NAN}, "threshold must be a number from 0 to 1, got nan"),
        ({"threshold": None}, "threshold must be a number from 0 to 1, got None"),
        ({"threshold": "0.5"}, "threshold must be a number from 0 to 1, got '0.5'"),
        ({"timestep": 1000}, "timestep must be a whole number from -1 to 999, got 1000"),
        ({"timestep": 0.5}, "timestep must be a whole number"),
        ({"seed": -1}, "seed must be a whole number from 0 to 18446744073709551615, got -1"),
        ({"seed": 2**64}, "seed must be a whole number"),
        ({"samples": 0}, "samples must be a whole number from 1 to 64, got 0"),
    ],
)
def test_a_link_is_held_to_the_range_of_the_widget(segment, refused, options, message):
    with refused(message):
        segment(image=park(), **options)


def test_numbers_of_the_other_nodes_are_checked_as_well(refine, attend, labels, refused):
    with refused("reach must be a number from 0.005 to 1, got nan"):
        refine(square(), picture(), reach=NAN)
    with refused("presence must be a number from 0 to 20, got None"):
        attend(image=park(), presence=None)
    with refused("caption must be a text, got 5"):
        attend(image=park(), caption=5)
    with refused("threshold must be a number"):
        labels(square(), "cat", threshold=NAN)


def test_reach_goes_from_the_node_that_made_the_masks_to_refine_mask(segment, attend, refine):
    masks, _, _, reach = attend(image=park())
    assert reach == pytest.approx(2 / 16)  # two positions of the miniature's grid
    assert segment(image=park())[3] == pytest.approx(1 / 24)
    assert refine(masks, park(), reach=reach).shape == (1, 256, 256)
