"""Caches of latents and features: whatever way they were built they hold the same bytes, and never those of another."""

import hashlib
import os
import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from threading import Barrier

import numpy as np
import pytest
import torch

from ldznet_core import load_backbone
from ldznet_core.backbones.fingerprint import fingerprint
from ldznet_core.data.base import Example
from ldznet_core.errors import InputError
from ldznet_core.networks.precision import half_precision
from ldznet_core.segment.features import noised_outputs
from ldznet_core.training import cache as latent_cache
from ldznet_core.training import features as feature_cache
from ldznet_core.training.cache import LatentCache
from ldznet_core.training.features import Draws, FeatureCache
from ldznet_core.training.processes import Processes


class Pictures(list):
    """Six examples of four pictures; two pictures have two phrases each, one phrase has an ignored half."""

    def __init__(self, side: int = 64):
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 255, (side, side, 3)).astype(np.uint8) for _ in range(4)]
        left = np.zeros((side, side), bool)
        left[:, : side // 2] = True
        super().__init__(
            Example(phrase, mask, images[number], ignore=ignore, caption="a cat", picture=f"picture {number}")
            for phrase, mask, number, ignore in (
                ("cat", left, 0, None), ("apple", ~left, 0, left), ("red", left, 1, None),
                ("cat", ~left, 2, None), ("red apple", left, 2, None), ("cat", left, 3, None),
            )
        )  # fmt: skip


@dataclass(frozen=True)
class Together(Processes):
    """Threads in place of processes."""

    barrier: Barrier | None = None

    def wait(self):
        if self.barrier:
            self.barrier.wait(60)


class Damaged(Pictures):
    def __getitem__(self, index):
        if index == 2:
            raise InputError("two.png is damaged")
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def loaded(made):
    return load_backbone(made / "mini.safetensors")


@pytest.fixture
def backbone(loaded):
    """For tests to change."""
    return deepcopy(loaded)


@pytest.fixture
def two_a_shard(monkeypatch):
    monkeypatch.setattr(latent_cache, "EXAMPLES", 2)
    monkeypatch.setattr(feature_cache, "EXAMPLES", 2)


def files(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def modules(backbone):
    tap = backbone.unet_config.taps[0]
    transformer = backbone.transformer(tap)
    return {"map": transformer, "query": transformer.transformer_blocks[0].attn2.to_q}


# ---- latents ----


def test_cached_examples_are_those_of_the_data_set_to_half_precision(backbone, tmp_path, two_a_shard):
    dataset = Pictures()
    cache = LatentCache(tmp_path, backbone, dataset, 64, batch=2)
    assert len(cache) == 6
    for example, cached in zip(dataset, cache, strict=True):
        expected = backbone.encode(torch.from_numpy(example.image)[None].float() / 255)[0]
        assert torch.allclose(cached.latent, expected, rtol=2**-10, atol=1e-4)
        assert cached.latent.dtype == torch.float32 and cached.image is None
        assert (cached.mask == example.mask).all() and cached.mask.dtype == bool
        assert (cached.ignore is None) == (example.ignore is None)
        assert cached.ignore is None or (cached.ignore == example.ignore).all()
        assert (cached.phrase, cached.caption, cached.picture) == (example.phrase, example.caption, example.picture)


def test_a_picture_is_encoded_once(backbone, tmp_path, monkeypatch):
    encode, count = backbone.encode, []
    monkeypatch.setattr(backbone, "encode", lambda image: count.append(len(image)) or encode(image))
    LatentCache(tmp_path, backbone, Pictures(), 64)
    LatentCache(tmp_path, backbone, Pictures(), 64)
    assert count == [4]


def test_pictures_of_another_size_are_resized(backbone, tmp_path):
    cached = LatentCache(tmp_path, backbone, Pictures(side=96), 64)[0]
    assert cached.latent.shape == (4, 8, 8)
    assert cached.mask.shape == (64, 64) and cached.mask[:, :32].all() and not cached.mask[:, 32:].any()


class Killed(BaseException):
    pass


def killed_after(monkeypatch, module, name, count):
    """Let a method of a cache end as a killed process does when it is called once more than `count` times."""
    kind = getattr(module, name.split(".")[0])
    method, calls = getattr(kind, name.split(".")[1]), []

    def call(*arguments):
        calls.append(0)
        if len(calls) > count:
            raise Killed
        return method(*arguments)

    monkeypatch.setattr(kind, name.split(".")[1], call)
    return lambda: monkeypatch.setattr(kind, name.split(".")[1], method)


def test_a_build_that_was_killed_goes_on_to_the_same_bytes(backbone, tmp_path, two_a_shard, monkeypatch):
    LatentCache(tmp_path / "whole", backbone, Pictures(), 64, batch=2)
    revive = killed_after(monkeypatch, latent_cache, "LatentCache._encoded", 1)
    with pytest.raises(Killed):
        LatentCache(tmp_path / "killed", backbone, Pictures(), 64, batch=2)
    assert len(files(tmp_path / "killed")) == 2  # about.json and one shard of three
    (tmp_path / "killed" / ".half.tmp").write_bytes(b"half of a shard")
    os.utime(tmp_path / "killed" / ".half.tmp", (0, 0))
    revive()
    LatentCache(tmp_path / "killed", backbone, Pictures(), 64, batch=2)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_processes_share_a_build(backbone, tmp_path, two_a_shard):
    LatentCache(tmp_path / "one", backbone, Pictures(), 64)
    with ThreadPoolExecutor() as pool:
        barrier = Barrier(2)
        runs = [
            pool.submit(LatentCache, tmp_path / "two", backbone, Pictures(), 64, processes=Together(rank, 2, barrier))
            for rank in range(2)
        ]
    assert [len(run.result()) for run in runs] == [6, 6]
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_processes_that_do_not_share_the_folder_are_told(backbone, tmp_path, two_a_shard):
    with pytest.raises(InputError, match="shard-000001.safetensors of another process is not there: give a folder"):
        LatentCache(tmp_path, backbone, Pictures(), 64, processes=Together(0, 2))


def test_latents_of_another_model_size_or_data_set_are_refused(backbone, tmp_path):
    LatentCache(tmp_path, backbone, Pictures(), 64)
    known = fingerprint(backbone)
    with pytest.raises(InputError, match="made with size 64, not with size 128: give another folder, or delete it"):
        LatentCache(tmp_path, backbone, Pictures(), 128)
    with pytest.raises(InputError, match=r"examples 6, data \w+, not with examples 5, data"):
        LatentCache(tmp_path, backbone, Pictures()[:5], 64)
    other = deepcopy(backbone)
    other.model.vae.encoder.conv_in.bias.data += 1
    with pytest.raises(InputError, match=f"model name test, model {known}, not with .*, model (?!{known})"):
        LatentCache(tmp_path, other, Pictures(), 64)


def test_a_disk_without_room_is_said_before_anything_is_encoded(backbone, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(2000, 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(LatentCache, "_encoded", None)
    with pytest.raises(InputError, match=r"latents of about \d pictures .* at 64 px need 2\.\d+ KB in .*, but 1 KB"):
        LatentCache(tmp_path, backbone, Pictures(), 64)


def test_a_disk_that_fills_up_keeps_what_is_done(backbone, tmp_path, two_a_shard, monkeypatch):
    from ldznet_core.training import shards

    save, count = shards.save_file, []

    def fill(tensors, file, metadata):
        count.append(file)
        if len(count) == 2:
            raise OSError(28, "No space left on device")
        save(tensors, file, metadata)

    monkeypatch.setattr(shards, "save_file", fill)
    with pytest.raises(InputError, match=r"shard-000001.safetensors cannot be written \(the disk is full\): free"):
        LatentCache(tmp_path, backbone, Pictures(), 64)
    assert sorted(files(tmp_path)) == ["about.json", "shard-000000.safetensors"]


def test_a_damaged_example_is_skipped_and_says_why_again(backbone, tmp_path, caplog):
    cache = LatentCache(tmp_path, backbone, Damaged(), 64)
    assert "two.png is damaged" in caplog.text
    assert cache[3].phrase == "cat"
    with pytest.raises(InputError, match="two.png is damaged"):
        cache[2]


def test_a_damaged_shard_is_named(backbone, tmp_path):
    LatentCache(tmp_path, backbone, Pictures(), 64)
    (tmp_path / "shard-000000.safetensors").write_bytes(b"no shard")
    with pytest.raises(InputError, match="shard-000000.safetensors cannot be read .*: delete it, and train again"):
        LatentCache(tmp_path, backbone, Pictures(), 64)[0]


def test_latents_that_are_not_finite_are_refused(backbone, tmp_path):
    backbone.model.vae.encoder.conv_in.bias.data.fill_(float("nan"))
    with pytest.raises(InputError, match="test encodes one of picture 0, .* as NaN or infinity"):
        LatentCache(tmp_path, backbone, Pictures(), 64)


# ---- features ----


def test_cached_outputs_are_those_of_a_pass_with_the_draw(backbone, tmp_path, two_a_shard):
    latents = LatentCache(tmp_path / "latents", backbone, Pictures(), 64)
    draws = Draws({"phrase": 0.5, "caption": 0.5}, count=3, timesteps=(300, 500), templates=("a {}",))
    cache = FeatureCache(tmp_path / "features", latents, modules(backbone), draws)
    kinds = set()
    for index in range(len(cache)):
        for number in range(3):
            outputs = cache.outputs([index], [number])
            example, draw = cache[index], draws(cache[index].picture, number)
            kinds.add(draw.kind)
            text = backbone.embed(["a " + example.phrase if draw.kind == "phrase" else "a cat"])
            noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(draw.seed))
            with half_precision("cpu"):
                expected = noised_outputs(
                    backbone, example.latent[None], noise[None], torch.tensor([draw.timestep]), text, modules(backbone)
                )
            assert outputs.timesteps.tolist() == [draw.timestep] and 300 <= draw.timestep < 500
            assert outputs.kinds == (draw.kind,)
            for name, value in expected.items():
                assert torch.allclose(outputs.tensors[name], value.float(), rtol=2**-9, atol=2e-3), name
    assert kinds == {"phrase", "caption"}


def test_features_under_no_text_are_kept_once_a_picture(backbone, tmp_path):
    latents = LatentCache(tmp_path / "latents", backbone, Pictures(), 64)
    sizes = {}
    for kind in ("empty", "phrase"):
        cache = FeatureCache(tmp_path / kind, latents, modules(backbone), Draws({kind: 1}, count=2))
        sizes[kind] = len(cache.shards[0].texts)
    assert sizes == {"empty": 4 * 2, "phrase": 6 * 2}
    same = cache.outputs([0, 1], [0, 0])
    assert same.timesteps[0] == same.timesteps[1]  # one picture, one noise: only the text differs


def test_a_build_of_features_that_was_killed_goes_on_to_the_same_bytes(backbone, tmp_path, two_a_shard, monkeypatch):
    latents = LatentCache(tmp_path / "latents", backbone, Damaged(), 64)
    draws = Draws({"phrase": 0.5, "empty": 0.5}, count=2)
    FeatureCache(tmp_path / "whole", latents, modules(backbone), draws)
    revive = killed_after(monkeypatch, feature_cache, "FeatureCache._extracted", 1)
    with pytest.raises(Killed):
        FeatureCache(tmp_path / "killed", latents, modules(backbone), draws)
    revive()
    cache = FeatureCache(tmp_path / "killed", latents, modules(backbone), draws)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    with pytest.raises(InputError, match="two.png is damaged"):
        cache.outputs([1, 2], [0, 0])


def test_features_of_other_parts_or_draws_are_refused(backbone, tmp_path):
    latents = LatentCache(tmp_path / "latents", backbone, Pictures(), 64)
    FeatureCache(tmp_path / "features", latents, modules(backbone), Draws({"empty": 1}, count=1))
    with pytest.raises(InputError, match="was made with draws 1, not with draws 2"):
        FeatureCache(tmp_path / "features", latents, modules(backbone), Draws({"empty": 1}, count=2))
    with pytest.raises(InputError, match="was made with parts .*query = .*, not with parts"):
        FeatureCache(tmp_path / "features", latents, {"map": modules(backbone)["map"]}, Draws({"empty": 1}, count=1))
