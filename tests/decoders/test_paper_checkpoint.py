"""The authors' checkpoint: every layout it may have comes to the same numbers, and nothing else comes through."""

import io
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from seeded import seed_weights, seeded

from ldznet_core import InputError, load_decoder
from ldznet_core.cli import main
from ldznet_core.decoders import paper_checkpoint as official
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.networks.schedule import Schedule
from ldznet_core.networks.unet import UNet, UNetConfig

DATA = Path(__file__).parents[1] / "data"
SMALL = UNetConfig(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(0, 1), context_dim=16
)  # fmt: skip


def layout(decoder: MaskDecoder, groups: str) -> dict:
    """A state dict as the authors' class saves it. Raw and averaged weights differ."""
    averaged = dict(decoder.named_parameters())
    state = {}
    if groups != "averaged":
        state |= {f"model.diffusion_model.{name}": value * 1.1 + 0.01 for name, value in averaged.items()}
    if groups != "raw":
        state |= {"model_ema." + f"diffusion_model.{n}".replace(".", ""): v.detach() for n, v in averaged.items()}
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    if groups == "everything":
        state |= {
            "betas": torch.rand(1000), "logvar": torch.zeros(1000),
            "first_stage_model.encoder.conv_in.weight": torch.rand(4, 3, 3, 3),
            "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
            "sd_features_stage_model.model.diffusion_model.time_embed.0.weight": torch.rand(8, 8),
        }  # fmt: skip
    return state


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return MaskDecoder(DecoderConfig("ldznet", SMALL, grid=8)).eval().requires_grad_(False)


def checkpoint(state: dict, path: Path) -> Path:
    torch.save({"state_dict": state, "epoch": 3, "global_step": 11}, path)
    return path


@pytest.mark.parametrize("groups", ["averaged", "both", "everything"])
def test_every_layout_gives_the_authors_numbers(tmp_path, groups, capsys):
    with safe_open(DATA / "official_small.safetensors", "pt") as f:
        meta, data = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(meta["config"]).items()}
    unet = UNetConfig(**sizes)
    seg = seed_weights(MaskDecoder(DecoderConfig("ldznet", unet)), int(meta["seg_seed"])).requires_grad_(False)
    source, out = checkpoint(layout(seg, groups), tmp_path / "in.ckpt"), tmp_path / "out.safetensors"
    assert main(["convert", str(source), str(out)]) == 0
    conditioning = json.loads(capsys.readouterr().out)
    assert conditioning["kind"] == "ldznet" and conditioning["parameters"] == sum(p.numel() for p in seg.parameters())

    sd = seed_weights(UNet(unet), int(meta["sd_seed"])).requires_grad_(False)
    for decoder in (load_decoder(out), load_decoder(source)):
        assert decoder.decoder_config == DecoderConfig("ldznet", unet) and decoder.info.family == "sd1"
        for case, (b, h, w, t) in enumerate(json.loads(meta["cases"])):
            seed = int(meta["input_seed"])
            z = 0.9 * seeded(f"z{case}", (b, 4, h, w), seed)
            noise, context = seeded(f"noise{case}", z.shape, seed), seeded(f"context{case}", (b, 77, 64), seed)
            timesteps = torch.full((b,), t)
            z_t = Schedule.stable_diffusion().add_noise(z, noise, timesteps)
            features = sd.extract(z_t, timesteps, context, decoder.taps)
            logits, expected = decoder(z, context, features)[..., ::4, ::4], data[f"case{case}.logits_stride4"]
            assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_full_size_names_are_known():
    """Of a real instance: averaged ones are found by the map that the loader builds."""
    listed = set(json.loads((DATA / "official_names.json").read_text())["decoder"])
    known = set(next(official._known_names()))
    assert listed <= known and all("skip_connection" in name for name in known - listed)


@pytest.mark.parametrize(
    "sizes",
    [
        {"channel_mult": (1, 1), "num_res_blocks": 2, "context_dim": 24},
        {"channel_mult": (2, 2, 4), "attention_levels": (0, 1), "model_channels": 64},
        {"channel_mult": (1, 2, 4, 4), "attention_levels": (0, 1, 2), "num_res_blocks": 2},
    ],
)
@pytest.mark.parametrize("groups", ["averaged", "raw"])
def test_sizes_are_read_from_the_tensors(tmp_path, sizes, groups):
    config = DecoderConfig("ldznet", replace(SMALL, **sizes), grid=16)
    decoder = MaskDecoder(config)
    read, weights = official.read_official(checkpoint(layout(decoder, groups), tmp_path / "in.ckpt"))
    assert read == config and weights.keys() == dict(decoder.named_parameters()).keys()


def test_safetensors_with_the_authors_names_are_read_too(tmp_path, small):
    file = tmp_path / "theirs.safetensors"
    save_file({k: v.contiguous() for k, v in layout(small, "averaged").items()}, file)
    assert all(torch.equal(a, b) for a, b in zip(load_decoder(file).parameters(), small.parameters(), strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_result_has_the_precision_asked_for(tmp_path, small, dtype, capsys):
    source, out = checkpoint(layout(small, "both"), tmp_path / "in.ckpt"), tmp_path / "out.safetensors"
    assert main(["convert", str(source), str(out), "--dtype", dtype]) == 0
    with safe_open(out, "pt") as f:
        assert {f.get_tensor(k).dtype for k in f.keys()} == {getattr(torch, dtype)}
    for wanted in (getattr(torch, dtype), torch.float32):
        assert {p.dtype for p in load_decoder(out, dtype=wanted).parameters()} == {wanted}


def test_a_result_is_not_overwritten_unasked(tmp_path, small, capsys):
    source, out = checkpoint(layout(small, "averaged"), tmp_path / "in.ckpt"), tmp_path / "out.safetensors"
    out.write_text("mine")
    assert main(["convert", str(source), str(out)]) == 2 and "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["convert", str(source), str(out), "--overwrite"]) == 0 and load_decoder(out).kind == "ldznet"


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def hostile(kind: str, state: dict, path: Path) -> Path:
    """A file that someone means harm with, or that went bad."""
    some = "model_ema." + "diffusion_model.out.2.weight".replace(".", "")
    if kind == "code":
        torch.save({"state_dict": {**state, "trap": Trap()}}, path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(Trap()))
    elif kind == "cut":
        checkpoint(state, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "packed":
        checkpoint(state, path)
        packed = io.BytesIO()
        with zipfile.ZipFile(path) as given, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bomb:
            for entry in given.namelist():
                bomb.writestr(entry, given.read(entry))
        path.write_bytes(packed.getvalue())
    elif kind == "shape":
        checkpoint({**state, some: torch.zeros(1, 99, 3, 3)}, path)
    elif kind == "nan":
        checkpoint({**state, some: state[some] * float("nan")}, path)
    elif kind == "junk":
        checkpoint({**state, **{f"junk.{i}": torch.zeros(1) for i in range(10_000)}}, path)
    elif kind == "only junk":
        checkpoint({f"junk.{i}": torch.zeros(1) for i in range(10_000)}, path)
    elif kind == "claims":
        checkpoint({**state, some: torch.zeros(1).expand(1, 10**12)}, path)
    elif kind == "missing":
        checkpoint({name: value for name, value in state.items() if name != some}, path)
    elif kind == "list":
        torch.save([1, 2, 3], path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "integers":
        checkpoint({**state, some: state[some].int()}, path)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "nested":
        checkpoint(state, path)
        with zipfile.ZipFile(path) as given:
            entries = {name: given.read(name) for name in given.namelist()}
        deep = b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b"."  # a list in a list in a list ...
        with zipfile.ZipFile(path, "w") as again:
            for name, content in entries.items():
                again.writestr(name, deep if name.endswith("data.pkl") else content)
    return path


KINDS = [
    "code", "plain pickle", "cut", "packed", "shape", "nan", "junk", "only junk", "claims", "missing", "list", "tensor",
    "integers", "empty", "nested",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_get_one_sentence_and_leave_nothing(tmp_path, small, kind, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, out = hostile(kind, layout(small, "averaged"), tmp_path / "in.ckpt"), tmp_path / "out" / "o.safetensors"
    with pytest.raises(InputError):
        load_decoder(source)
    assert main(["convert", str(source), str(out)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("ldznet: ") and err.count("\n") == 1 and "in.ckpt" in err and len(err) < 400
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in.ckpt"]


def test_what_is_neither_ours_nor_theirs_is_refused(tmp_path):
    file = tmp_path / "other.safetensors"
    save_file({"lora.up": torch.zeros(2, 2)}, file)
    with pytest.raises(InputError, match="no LD-ZNet decoder"):
        load_decoder(file)
