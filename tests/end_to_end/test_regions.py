"""The template of regions by words on a real server: what it draws, and that it draws it again."""

import json

import numpy as np
import pytest
from client import ROOT, Server, node, to_api
from test_caching import CACHES, interrupt

PATH = ROOT / "example_workflows/regions_by_words.json"
WORDS = ("balloon", "panda")


def graph_of(server: Server, **changes) -> dict:
    """The template, with Segment for WORDS in the pictures of no region. `changes` are values of its nodes' inputs by
    their names, for each node that has such an input."""
    graph = to_api(json.loads(PATH.read_text(encoding="utf-8")), server.json("/object_info"))
    for inputs in (n["inputs"] for n in graph.values()):
        inputs |= {name: value for name, value in changes.items() if name in inputs}
    samplers = {tuple(n["inputs"]["positive"]): id for id, n in graph.items() if n["class_type"] == "KSampler"}
    plain = next(id for (source, _), id in samplers.items() if graph[source]["class_type"] == "CLIPTextEncode")
    (loader,) = (id for id, n in graph.items() if n["class_type"] == "LDZNetLoadMini")
    (light,) = (id for id, n in graph.items() if n["class_type"] == "LDZNetLoadDecoder")
    return {
        **graph,
        "found": node(
            "LDZNetSegment", model=(loader, 0), clip=(loader, 1), decoder=(light, 0), latent=(plain, 0),
            text="\n".join(WORDS), timestep=-1, seed=0, threshold=0.0,
        ),
        "grey": node("MaskToImage", mask=("found", 0)),
        "masks": node("SaveImage", images=("grey", 0), filename_prefix="masks"),
    }


def drawn(server: Server, graph: dict) -> dict[str, np.ndarray]:
    """The saved pictures [B, h, w, 3] by the prefixes of their names."""
    run = server.run(graph, timeout=600)
    savers = {n["inputs"]["filename_prefix"]: id for id, n in graph.items() if n["class_type"] == "SaveImage"}
    return {prefix.split("/")[-1]: np.stack(server.pictures(run, id)) for prefix, id in savers.items()}


@pytest.fixture(scope="module")
def first(serve):
    """What a first run draws: the server keeps nothing."""
    server = serve(*CACHES["none"])
    return drawn(server, graph_of(server))


def changes(plain: np.ndarray, region: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """How much pictures [2, 256, 256, 3] differ in the mean, 0..255, where WORDS are: [2, 2]."""
    change = np.abs(plain.astype(float) - region).max(-1)  # [2, 256, 256]
    masks = masks[..., 0].reshape(2, len(WORDS), 256, 256) > 127
    assert masks.mean((2, 3)).min() > 0.02, "each of them was drawn"
    return np.array([[picture[mask].mean() for mask in own] for picture, own in zip(change, masks, strict=True)])


def test_the_pictures_differ_where_the_words_are(first):
    assert first["plain"].shape == first["region"].shape == (2, 256, 256, 3)
    balloon, panda = changes(**first).T
    assert (balloon > 15).all() and (panda < 0.25 * balloon).all()


@pytest.mark.parametrize("cache", ["classic", "none"])
def test_it_draws_the_same_after_another_seed(serve, first, cache):
    server = serve(*CACHES[cache])
    other = drawn(server, graph_of(server, seed=5, steps=2))
    assert not np.array_equal(other["region"], first["region"])
    again = drawn(server, graph_of(server))  # the samplers run, a cache has their CONDITIONING
    assert all(np.array_equal(again[name], first[name]) for name in first)


def test_without_share_the_pictures_are_the_same(server):
    pictures = drawn(server, graph_of(server, strength=0.0, steps=4))
    assert np.array_equal(pictures["region"], pictures["plain"])


def test_without_a_decoder_attention_finds_the_region(server):
    graph = graph_of(server)
    (region,) = (n["inputs"] for n in graph.values() if n["class_type"] == "LDZNetConditioningSetWords")
    del region["decoder"]
    balloon, panda = changes(**drawn(server, graph)).T
    assert (balloon > 15).all() and panda.mean() < 0.7 * balloon.mean()


def test_an_interrupted_run_leaves_nothing(server, first):
    interrupt(server, graph_of(server, steps=200), r"\b[1-9]\d/200 ")
    pictures = drawn(server, graph_of(server))
    assert all(np.array_equal(pictures[name], first[name]) for name in first)
