"""Captured masks belong to the picture at hand, whatever the server keeps of earlier runs and whatever it forgets.

The judge is a server that keeps nothing: there every run is a first run.
"""

import re
import time

import numpy as np
import pytest
from client import RunFailed, Server, node

SEGMENT, ATTENTION = "LDZNetSegmentCaptured", "LDZNetAttentionMask"
CACHES = {"classic": (), "none": ("--cache-none",), "lru": ("--cache-lru", "1")}


@pytest.fixture(scope="session")
def expected(serve):
    """expected(text, seed, by): the mask [h, w, 3] of a first run."""
    forgetful, masks = serve(*CACHES["none"]), {}

    def mask(text: str, seed: int, by: str = SEGMENT) -> np.ndarray:
        if (text, seed, by) not in masks:
            run = forgetful.run(one_mask(text, seed, by=by))
            assert not run.cached
            masks[text, seed, by] = forgetful.pictures(run, "mask")[0]
        return masks[text, seed, by]

    return mask


@pytest.fixture(params=CACHES)
def cached_server(serve, request):
    return serve(*CACHES[request.param])


def picture(seed: int = 1, steps: int = 20) -> dict:
    """A pumpkin drawn under a capture; nodes "load", "capture", "sampler" and, last, "drawn"."""
    return {
        "load": node("LDZNetLoadMini"),
        "capture": node("LDZNetCapture", model=("load", 0)),
        "yes": node("CLIPTextEncode", clip=("load", 1), text="a pumpkin on a blue background"),
        "no": node("CLIPTextEncode", clip=("load", 1), text=""),
        "empty": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "sampler": sampler(seed, steps),
        "decode": node("VAEDecode", samples=("sampler", 0), vae=("load", 2)),
        "drawn": node("SaveImage", images=("decode", 0), filename_prefix="drawn"),
    }


def sampler(seed: int, steps: int = 20, model: str = "capture") -> dict:
    return node(
        "KSampler", model=(model, 0), positive=("yes", 0), negative=("no", 0), latent_image=("empty", 0),
        seed=seed, steps=steps, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )


def mask(name: str, sampler: str, text: str, by: str = SEGMENT) -> dict:
    """The node `name` that saves the mask of what `sampler` drew. It is never zeroed: every level is compared."""
    own = {
        SEGMENT: {"decoder": ("load", 3)},
        ATTENTION: {"method": "attention", "timestep": -1, "seed": 0, "spread": "auto", "presence": 0.0},
    }
    return {
        f"{name} found": node(
            by, capture=("capture", 1), latent=(sampler, 0), clip=("load", 1), text=text, threshold=0.0, **own[by]
        ),
        f"{name} grey": node("MaskToImage", mask=(f"{name} found", 0)),
        name: node("SaveImage", images=(f"{name} grey", 0), filename_prefix="mask"),
    }


def one_mask(text: str = "pumpkin", seed: int = 1, steps: int = 20, by: str = SEGMENT) -> dict:
    return {**picture(seed, steps), **mask("mask", "sampler", text, by)}


def two_masks(seeds: tuple[int, int], text: str = "pumpkin") -> dict:
    """Two samplers on one capture, a mask of each."""
    return {
        **picture(seeds[0]),
        "other": sampler(seeds[1]),
        **mask("mask", "sampler", text),
        **mask("mask 2", "other", text),
    }


def masks_of(server: Server, graph: dict, *names: str) -> list[np.ndarray]:
    """The pixels alone: in its files the server writes the prompt as well, which may be that of a cached run."""
    run = server.run(graph)
    return [server.pictures(run, name)[0] for name in names or ("mask",)]


def interrupt(server: Server, graph: dict, sign: str) -> None:
    """Start a prompt and interrupt it once its log shows `sign`."""
    prompt, log, deadline = server.start(graph), "", time.monotonic() + 120
    while not re.search(sign, log):
        assert time.monotonic() < deadline, log
        time.sleep(0.05)
        log += server.new_log()
    assert "Traceback" not in log
    server.post("/interrupt", {})
    began = time.monotonic()
    with pytest.raises(RunFailed) as error:
        server.wait(prompt)
    assert error.value.kind == "execution_interrupted"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("by", [SEGMENT, ATTENTION])
def test_another_phrase_does_not_sample_again(server, by):
    server.run(one_mask("pumpkin", by=by))
    server.new_log()
    run = server.run(one_mask("ladybug", by=by))
    assert {"capture", "sampler", "decode"} <= run.cached
    assert "extra pass" not in server.new_log()


@pytest.mark.parametrize("by", [SEGMENT, ATTENTION])
def test_another_phrase_gets_the_masks_of_a_first_run(cached_server, expected, by):
    for text in ("pumpkin", "ladybug", "pumpkin"):
        assert np.array_equal(*masks_of(cached_server, one_mask(text, by=by)), expected(text, 1, by))
    assert not np.array_equal(expected("pumpkin", 1, by), expected("ladybug", 1, by))
    assert expected("pumpkin", 1, by).max() > 200


@pytest.mark.parametrize("by", [SEGMENT, ATTENTION])
def test_another_seed_gets_the_masks_of_a_first_run(cached_server, expected, by):
    for seed in (1, 2, 1):
        assert np.array_equal(*masks_of(cached_server, one_mask(seed=seed, by=by)), expected("pumpkin", seed, by))
    assert not np.array_equal(expected("pumpkin", 1, by), expected("pumpkin", 2, by))


def test_two_samplers_share_a_capture(cached_server, expected):
    for seeds in ((1, 2), (2, 1)):
        masks = masks_of(cached_server, two_masks(seeds), "mask", "mask 2")
        for mask, seed in zip(masks, seeds, strict=True):
            assert np.array_equal(mask, expected("pumpkin", seed))


@pytest.mark.parametrize("seen", [True, False])
def test_the_latent_of_another_sampler_is_refused(serve, seen):
    server = serve(*CACHES["none"])  # a new capture at every run
    captured = one_mask(seed=1) if seen else picture()
    graph = {**captured, "other": sampler(99, model="load"), **mask("other mask", "other", "pumpkin")}
    assert "latent 1 of 1 is not one that this capture saw sampled" in server.fails(graph)


def test_interrupted_sampling_leaves_nothing_behind(server):
    before = masks_of(server, one_mask(), "drawn", "mask")
    interrupt(server, one_mask(steps=200), r"\b[1-9]\d/200 ")
    after = masks_of(server, one_mask(), "drawn", "mask")
    assert all(np.array_equal(*pair) for pair in zip(after, before, strict=True))


def test_segmenting_many_pictures_can_be_interrupted(server, expected):
    many = {
        **picture(),
        "few": node("RepeatLatentBatch", samples=("sampler", 0), amount=20),
        "many": node("RepeatLatentBatch", samples=("few", 0), amount=50),
        "mask": node(
            "LDZNetSegment", model=("load", 0), clip=("load", 1), decoder=("load", 3), latent=("many", 0),
            text="pumpkin", timestep=400, seed=0, threshold=0.0,
        ),
    }
    server.run(picture())
    interrupt(server, many, "Requested to load SD1ClipModel")
    assert np.array_equal(*masks_of(server, one_mask()), expected("pumpkin", 1))
