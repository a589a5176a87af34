"""What every command shares, on a model too small to be of any use: refusals, faults, help; and `info`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from terminal import bundle, call, done, fail, files, picture, refused

import ldznet_core.commands.segment
from ldznet_core import cli, load_decoder
from ldznet_core.decoders.files import write_decoder
from ldznet_core.decoders.unet import DecoderConfig, MaskDecoder
from ldznet_core.networks.unet import UNetConfig

# ---- refusals ----


def test_files_that_are_no_pictures(here, capsys):
    Path("words.png").write_text("a cat")
    noise = picture(here / "noise.png", (200, 200)).read_bytes()
    Path("cut.png").write_bytes(noise[: len(noise) // 2])
    for name in ("gone.png", "words.png", "cut.png"):
        assert name in refused(capsys, here, "segment", name, "--text", "cat")


@pytest.mark.parametrize("phrase", ["", "  ", "cat |", "\udc80"])
def test_phrases_that_say_nothing(here, capsys, phrase):
    refused(capsys, here, "segment", "a.png", "--text", phrase)
    refused(capsys, here, "generate", "a cat", "--text", phrase)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(here, capsys, monkeypatch):
    monkeypatch.setattr(ldznet_core.commands.segment, "open_model", None)
    for out in ("a.png", "a.png/masks"):
        assert "a.png is a file" in refused(capsys, here, "segment", "a.png", "--text", "cat", "--out", out)
        refused(capsys, here, "generate", "a cat", "--text", "cat", "--out", out)


def test_a_picture_of_the_call_is_not_overwritten(here, capsys):
    picture(here / "a.cat.png")
    refused(capsys, here, "segment", "a.png", "a.cat.png", "--text", "cat", "--out", ".")
    picture(here / "a.labels.png")
    refused(capsys, here, "segment", "a.png", "a.labels.png", "--text", "dog", "--out", ".", "--labels")


@pytest.mark.parametrize(
    "options",
    [
        ("--timestep", "1000"),
        ("--timestep", "x"),
        ("--threshold", "2"),
        ("--threshold", "nan"),
        ("--seed", "-1"),
        ("--device", "warp"),
        ("--device", "meta"),
        ("--dtype", "int8"),
        ("--method", "magic"),
        ("--condition", "caption"),
        ("--condition", "empty", "--caption", "a cat"),
        ("--decoder", "gone.safetensors"),
        ("--decoder", "a.png"),
        ("--model", "gone.safetensors"),
        ("--model", "a.png", "--decoder", "mini"),
        ("--model", "a.png", "--method", "attention"),
        ("--method", "attention", "--samples", "0"),
        ("--method", "attention", "--spread", "far"),
        ("--method", "attention", "--presence", "-1"),
        ("--method", "attention", "--presence", "nan"),
        ("--method", "attention", "--caption", "\udc80"),
        ("--sharpen",),
    ],
)
def test_bad_options(here, capsys, options):
    refused(capsys, here, "segment", "a.png", "--text", "cat", *options)


@pytest.mark.parametrize(
    "options",
    [
        ("--decoder mini", "--method attention"),
        ("--decoder mini", "--method noise"),
        ("--authors", "--method attention"),
        ("--authors", "--method noise"),
        ("--condition empty", "--method attention"),
        ("--condition phrase", "--method noise"),
        ("--caption cat", "--method noise"),
        ("--spread none", "--method noise"),
        ("--spread none",),
        ("--presence 0", "--method noise"),
        ("--presence 0", "--method znet"),
        ("--timestep 400", "--method znet"),
        ("--samples 2", "--method znet"),
        ("--condition empty", "--method znet"),
        ("--caption cat", "--method znet"),
    ],
)
def test_options_without_a_use(here, capsys, options):
    option, *method = (words.split() for words in options)
    conditioning = refused(capsys, here, "segment", "a.png", "--text", "cat", *option, *sum(method, []))
    assert f"{option[0]} has no use" in conditioning and "leave it out" in conditioning
    if option[0] in ("--decoder", "--spread", "--presence"):
        assert conditioning == refused(capsys, here, "generate", "a cat", "--text", "cat", *option, *sum(method, []))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(here, capsys):
    assert "--device cpu" in refused(capsys, here, "segment", "a.png", "--text", "cat", "--device", "cuda")


@pytest.mark.parametrize("argv", [(), ("paint",), ("segment",), ("segment", "a.png"), ("mini",), ("generate", "a")])
def test_bad_usage_is_one_line(here, capsys, argv):
    assert "--help" in refused(capsys, here, *argv)


@pytest.mark.parametrize("size", ["100x100", "0x64", "64", "64x99999", "axb"])
def test_bad_sizes(here, capsys, size):
    refused(capsys, here, "generate", "a cat", "--text", "cat", "--size", size)


def test_decoders_of_another_kind_or_model(here, made, capsys):
    decoder = MaskDecoder(DecoderConfig("ldznet", UNetConfig(model_channels=32, context_dim=64, num_heads=2), grid=8))
    write_decoder(decoder, load_decoder(made / "ldznet.safetensors").info, here / "other.safetensors")
    segment = ("segment", "a.png", "--text", "cat", "--decoder")
    assert "64" in refused(capsys, here, *segment, "other.safetensors")
    assert "znet" in refused(capsys, here, *segment, made / "znet.safetensors", "--method", "ldznet")
    refused(capsys, here, *segment, made / "mini.safetensors")


@pytest.mark.parametrize("name", ["mini.safetensors", "ldznet.safetensors", "tokenizer/vocab.json"])
def test_bundled_weights_missing_or_damaged(here, made, tmp_path_factory, capsys, monkeypatch, name):
    whole = (made / name).read_bytes()
    broken = tmp_path_factory.mktemp("broken")
    (broken / "tokenizer").mkdir()
    for file in ("mini.safetensors", "ldznet.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt"):
        if file != name:
            (broken / file).symlink_to(made / file)
    bundle(monkeypatch, broken)
    refused(capsys, here, "segment", "a.png", "--text", "cat")
    for size in (0, 5, len(whole) // 2):
        (broken / name).write_bytes(whole[:size])
        refused(capsys, here, "segment", "a.png", "--text", "cat")


# ---- faults and endings ----


def test_a_fault_of_ours_is_told_apart(here, capsys, monkeypatch):
    monkeypatch.setattr(ldznet_core.commands.segment, "open_model", fail(ZeroDivisionError("by zero")))
    segment = ("segment", "a.png", "--text", "cat")
    status, _, errors = call(capsys, *segment)
    assert status == 1 and len(errors) == 1 and "report" in errors[0] and "by zero" in errors[0]
    status, _, errors = call(capsys, *segment, "--verbose")
    assert status == 1 and errors[0].startswith("Traceback") and errors[-1].startswith("ldznet: ")


def test_interrupted(here, capsys, monkeypatch):
    monkeypatch.setattr(ldznet_core.commands.segment, "draw", fail(KeyboardInterrupt()))
    before = files(here)
    assert call(capsys, "segment", "a.png", "--text", "cat")[0] == 130
    assert files(here) == before


def test_help_as_a_module():
    root = Path(cli.__file__).parents[1]
    shown = subprocess.run(
        [sys.executable, "-m", "ldznet_core", "--help"], cwd=root, capture_output=True, text=True, check=True
    )
    assert "segment" in shown.stdout and not shown.stderr


@pytest.mark.parametrize("command", ["segment", "generate", "evaluate", "info", "mini build"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*command.split(), "--help"])
    assert end.value.code == 0 and f"ldznet {command}" in capsys.readouterr().out


# ---- info ----


def test_info_of_decoder_and_model(here, made, capsys):
    (decoder,) = done(capsys, "info", made / "ldznet.safetensors", "--json")
    assert decoder["kind"] == "ldznet" and decoder["family"] == "test" and decoder["licence"] == "Apache-2.0"
    assert decoder["context width"] == 32 and len(decoder["taps"]) == 5 and decoder["parameters"] > 1000
    model, *decoders = done(capsys, "info", "mini", "--json")
    assert model["kind"] == "model" and set(model["parts"]) == {"unet", "vae", "text"}
    assert model["parameters"] == sum(model["parts"].values()) and model["about"]["name"] == "test"
    assert [d["kind"] for d in decoders] == ["ldznet", "znet", "rgbnet"]


def test_info_to_read(here, made, capsys):
    assert cli.main(["info", str(made / "znet.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "kind           znet" in out and "templates      a photo of a {}." in out


def test_info_of_other_files(here, made, capsys):
    save_file({"weight": torch.zeros(2)}, "other.safetensors")
    whole = (made / "ldznet.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    for name in ("gone.safetensors", ".", "a.png", "other.safetensors", "cut.safetensors"):
        assert name in refused(capsys, here, "info", name)
