"""The command line from end to end, on a model too small to be of any use: what it writes, prints and refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ldznet_core.commands.info
import ldznet_core.commands.segment
import ldznet_core.commands.shared
import ldznet_core.hosts
import ldznet_core.hosts.ldm
import ldznet_core.weights
from ldznet_core import cli, load_decoder, load_host
from ldznet_core.features import overhear
from ldznet_core.networks.decoder import DecoderConfig, MaskDecoder
from ldznet_core.networks.unet import UNetConfig
from ldznet_core.queries import SETTLED, plan
from ldznet_core.weights import write_decoder


def bundle(monkeypatch, folder):
    for module in (ldznet_core.weights, ldznet_core.hosts, ldznet_core.commands.info):
        monkeypatch.setattr(module, "BUNDLED", folder)


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """An empty current folder, with the random model as the bundled one and a picture at hand."""
    bundle(monkeypatch, made)
    monkeypatch.setattr(ldznet_core.hosts.ldm, "STEPS", 5)  # its drawings are noise after any number of them
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    return tmp_path


def picture(path: Path, size=(40, 24), mode="RGB") -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def call(capsys, *argv) -> tuple[int, list[dict], list[str]]:
    """Exit status, parsed stdout lines, stderr lines."""
    status = cli.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return status, [json.loads(line) for line in out.splitlines()], err.splitlines()


def done(capsys, *argv) -> list[dict]:
    status, lines, errors = call(capsys, *argv)
    assert status == 0 and not errors, errors
    return lines


def pixels(file) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(int)


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def refused(capsys, here, *argv) -> str:
    """The one line on stderr of a call that must end with 2 and leave nothing behind."""
    before = files(here)
    status, lines, errors = call(capsys, *argv)
    assert (status, lines, len(errors)) == (2, [], 1), errors
    assert errors[0].startswith("ldznet: ")
    assert files(here) == before
    return errors[0]


# ---- segment ----


def test_segment_writes_what_it_prints(here, capsys):
    (line,) = done(capsys, "segment", "a.png", "--text", "cat", "--text", "red apple | cat")
    assert line["image"] == "a.png" and line["seconds"] > 0
    assert [p["text"] for p in line["phrases"]] == ["cat", "red apple", "cat"]
    assert [p["mask"] for p in line["phrases"]] == [f"masks/a.{n}.png" for n in ("cat", "red-apple", "cat-2")]
    assert files(here / "masks") == {"a.cat.png", "a.red-apple.png", "a.cat-2.png", "a.overlay.png"}
    for phrase in line["phrases"]:
        mask = Image.open(phrase["mask"])
        assert mask.mode == "L" and mask.size == (40, 24)
        values = np.asarray(mask) / 255
        assert abs((values > 0.5).mean() - phrase["coverage"]) < 0.02
        assert abs(values.max() - phrase["peak"]) < 0.003
    assert line["overlay"] == "masks/a.overlay.png"


def test_threshold_decides_coverage(here, capsys):
    for threshold, coverage in ((0, 1), (1, 0)):
        (line,) = done(capsys, "segment", "a.png", "--text", "cat", "--threshold", threshold)
        assert line["phrases"][0]["coverage"] == coverage


@pytest.mark.parametrize("method", ["ldznet", "znet", "rgbnet", "attention", "noise"])
def test_every_method(here, capsys, method):
    (line,) = done(capsys, "segment", "a.png", "--text", "cat", "--method", method)
    assert Image.open(line["phrases"][0]["mask"]).size == (40, 24)
    assert ("presence" in line["phrases"][0]) == (method == "attention")


def test_seed_and_condition_matter_and_repeat(here, capsys):
    def mask(*options):
        done(capsys, "segment", "a.png", "--text", "cat", *options)
        return Path("masks/a.cat.png").read_bytes()

    options = ((), ("--seed", 1), ("--timestep", 300), ("--condition", "empty"), ("--caption", "red apple"))
    masks = [mask(*option) for option in options]
    assert masks == [mask(*option) for option in options]
    assert len(set(masks)) == len(masks)


@pytest.mark.parametrize("method", ["ldznet", "attention", "noise"])
def test_bfloat16(here, capsys, method):
    done(capsys, "segment", "a.png", "--text", "cat", "--dtype", "bfloat16", "--method", method)


@pytest.mark.parametrize(
    "name, size, mode",
    [
        ("dot.png", (1, 1), "RGB"),
        ("long.png", (8000, 37), "RGB"),
        ("grey.png", (30, 20), "L"),
        ("cmyk.jpg", (30, 20), "CMYK"),
        ("palette.gif", (30, 20), "P"),
    ],
)
def test_any_picture_gets_a_mask_of_its_size(here, capsys, name, size, mode):
    picture(here / name, size, mode)
    (line,) = done(capsys, "segment", name, "--text", "cat")
    assert Image.open(line["phrases"][0]["mask"]).size == size


def test_deep_transparent_animated_and_turned_pictures(here, capsys):
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save("deep.png")
    Image.new("RGBA", (30, 20), (255, 0, 0, 60)).save("clear.png")
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side
    Image.new("RGB", (20, 30), "red").save("turned.jpg", exif=turned)
    names = ("deep.png", "clear.png", "moving.gif", "turned.jpg")
    lines = done(capsys, "segment", *names, "--text", "cat")
    assert [line["image"] for line in lines] == list(names)
    for line in lines:
        assert Image.open(line["phrases"][0]["mask"]).size == (30, 20)


def test_a_phrase_of_500_words_is_cut_with_a_warning(here, capsys):
    status, (line,), errors = call(capsys, "segment", "a.png", "--text", "cat " * 500)
    assert status == 0 and len(errors) == 1 and "75 tokens" in errors[0]
    assert Image.open(line["phrases"][0]["mask"]).size == (40, 24)


def test_pictures_of_one_name_do_not_overwrite_each_other(here, capsys):
    paths = []
    for folder in ("x", "y"):
        (here / folder).mkdir()
        paths.append(picture(here / folder / "b.png"))
    lines = done(capsys, "segment", *paths, "--text", "cat", "--out", "out")
    assert [line["phrases"][0]["mask"] for line in lines] == ["out/b.cat.png", "out/b-2.cat.png"]
    assert len(files(here / "out")) == 4


def test_good_pictures_are_done_beside_a_bad_one(here, capsys):
    picture(here / "c.png")
    status, lines, errors = call(capsys, "segment", "a.png", "gone.png", "c.png", "--text", "cat")
    assert status == 2 and [line["image"] for line in lines] == ["a.png", "c.png"]
    assert len(errors) == 1 and "gone.png" in errors[0] and errors[0].startswith("ldznet: ")


# ---- segment: no decoder, edges, labels ----

ATTENTION = ("segment", "a.png", "--method", "attention", "--presence", "0")


@pytest.mark.parametrize("method", ["attention", "noise"])
def test_any_checkpoint_is_read_without_a_decoder(here, made, capsys, monkeypatch, method):
    (here / "model").mkdir()
    shutil.copy(made / "mini.safetensors", "model/other.safetensors")
    shutil.copytree(made / "tokenizer", "model/tokenizer")
    monkeypatch.setattr(ldznet_core.commands.shared, "load_decoder", fail(AssertionError("a decoder")))
    segment = ("segment", "a.png", "--text", "cat", "--model", "model/other.safetensors")
    done(capsys, *segment, "--method", method)
    assert "--method attention" in refused(capsys, here, *segment)


def test_how_attention_is_read_matters_and_repeats(here, capsys):
    def mask(options):
        done(capsys, *ATTENTION, "--text", "cat", *options.split())
        return Path("masks/a.cat.png").read_bytes()

    options = ("", "--seed 1", "--timestep 300", "--samples 2", "--caption apple", "--spread stuff")
    masks = [mask(option) for option in options]
    assert len(set(masks)) == len(masks)
    assert masks[0] == mask("--seed 0 --timestep 100 --samples 1 --spread auto")


# To a random model a phrase makes next to no difference: noise shows the rounding of batches of other sizes.
@pytest.mark.parametrize(("method", "close"), [("attention", 1e-4), ("noise", 0.05)])
def test_phrases_do_not_change_each_other(here, capsys, monkeypatch, method, close):
    drawn = []
    draw = ldznet_core.commands.segment.draw

    def record(image, masks, *others):
        drawn.append(masks)
        return draw(image, masks, *others)

    monkeypatch.setattr(ldznet_core.commands.segment, "draw", record)
    phrases = ["cat", "red apple", "dog", "a", "apple cat red", "grass", "red cat", "a photo of a cat"]
    presence = ("--presence", "0") if method == "attention" else ()
    for said in (" | ".join(phrases), *phrases):
        done(capsys, "segment", "a.png", "--text", said, "--method", method, *presence)
    together, *alone = drawn
    assert len(together) == 8 and together.amax((1, 2)).min() > 0.5
    assert (together - torch.cat(alone)).abs().max() < close


def test_what_has_too_little_presence_has_an_empty_mask(here, capsys):
    def phrases(presence):
        (line,) = done(capsys, *ATTENTION, "--text", "cat | red apple | dog", "--presence", presence)
        return line["phrases"]

    everything = phrases(0)
    between = sorted(one["presence"] for one in everything)[1]
    for before, after in zip(everything, phrases(between - 1e-3), strict=True):
        assert before["presence"] == after["presence"] and before["peak"] > 0.5
        assert (after["peak"] == 0) == (pixels(after["mask"]).max() == 0) == (before["presence"] < between)
    assert [one["peak"] for one in phrases("inf")] == [0, 0, 0]


@pytest.mark.parametrize("method", ["ldznet", "attention", "noise"])
def test_refined_edges_are_others(here, capsys, method):
    def mask(*options):
        done(capsys, "segment", "a.png", "--text", "cat", "--method", method, *options)
        return pixels("masks/a.cat.png")

    assert (mask() != mask("--refine")).any()


@pytest.mark.parametrize("method", ["ldznet", "attention"])
def test_with_labels_no_pixel_belongs_to_two_phrases(here, capsys, method):
    segment = ("segment", "a.png", "--text", "cat | red apple | labels", "--method", method, "--refine")
    (line,) = done(capsys, *segment)
    assert "labels" not in line
    alone = np.stack([pixels(one["mask"]) for one in line["phrases"]])
    (line,) = done(capsys, *segment, "--labels")
    assert [one["mask"] for one in line["phrases"]] == [f"masks/a.{n}.png" for n in ("cat", "red-apple", "labels-2")]
    kept = np.stack([pixels(one["mask"]) for one in line["phrases"]])
    assert ((alone > 0).sum(0) > 1).any() and ((kept > 0).sum(0) <= 1).all()
    assert (kept.max(0) == alone.max(0)).all()
    assert line["labels"] == "masks/a.labels.png"
    assert Image.open(line["labels"]).width > 2 * 512


@pytest.mark.parametrize("size", [(1, 1), (8000, 37), (37, 4000)])
def test_labels_of_one_phrase_and_of_any_picture(here, capsys, size):
    picture(here / "odd.png", size)
    (line,) = done(capsys, "segment", "odd.png", "--text", "cat", "--labels")
    assert Image.open(line["labels"]).width > 2 * size[0]


def test_the_miniatures_own_attention_finds_things(tmp_path, capsys):
    park = Path(__file__).parents[1] / "docs" / "pictures" / "park.png"
    places = {"panda": (18, 112, 136, 222), "pumpkin": (134, 22, 240, 126), "ladybug": (152, 138, 240, 228)}
    texts = [word for name in places for word in ("--text", name)]
    options = ("--method", "attention", "--refine", "--labels", "--out", tmp_path)
    (line,) = done(capsys, "segment", park, *texts, *options)
    for phrase, (left, top, right, bottom) in zip(line["phrases"], places.values(), strict=True):
        mask = pixels(phrase["mask"]) > 127
        inside = mask[top:bottom, left:right]
        assert phrase["presence"] > 2 and inside.mean() > 0.3 and inside.sum() > 0.7 * mask.sum()


# ---- refusals ----


def test_files_that_are_no_pictures(here, capsys):
    Path("words.png").write_text("a cat")
    noise = picture(here / "noise.png", (200, 200)).read_bytes()
    Path("cut.png").write_bytes(noise[: len(noise) // 2])
    for name in ("gone.png", "words.png", "cut.png", "."):
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
    said = refused(capsys, here, "segment", "a.png", "--text", "cat", *option, *sum(method, []))
    assert f"{option[0]} has no use" in said and "leave it out" in said
    if option[0] in ("--decoder", "--spread", "--presence"):
        assert said == refused(capsys, here, "generate", "a cat", "--text", "cat", *option, *sum(method, []))


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


def fail(error):
    def run(*_):
        raise error

    return run


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


# ---- generate ----

DRAW = ("generate", "a cat", "--text", "dog", "--text", "cat", "--threshold", "0")


def test_generate_writes_everything(here, capsys):
    draw = (*DRAW, "--seed", 3, "--size", "128x64", "--replace", "red apple", "--out", "out")
    (line,) = done(capsys, *draw)
    threshold = line["phrases"][0]["peak"] - 0.01  # so that little is found, whatever the random decoder thinks
    (line,) = done(capsys, *draw, "--threshold", threshold)
    names = {f"a-cat-3{end}.png" for end in ("", ".dog", ".cat", ".overlay", ".composite", ".inpainted")}
    assert files(here / "out") == names
    assert line["caption"] == "a cat" and line["image"] == "out/a-cat-3.png"
    assert 0 < line["mask_seconds"] < line["seconds"]
    drawn, mask = pixels(line["image"]), pixels(line["phrases"][0]["mask"])
    assert drawn.shape == (64, 128, 3) and mask.shape == (64, 128)

    composite = pixels(line["composite"])
    assert (composite[..., :3] == drawn).all() and (composite[..., 3] == mask).all()

    inpainted = pixels(line["inpainted"])
    changed = (inpainted != drawn).any(-1)
    found = torch.from_numpy(mask > threshold * 255 - 1)[None, None].float()
    near = torch.nn.functional.max_pool2d(found, 33, stride=1, padding=16)[0, 0].numpy() > 0
    assert 0 < near.mean() < 1 and changed.any()
    assert not changed[~near].any()


def test_generate_repeats_by_seed(here, capsys):
    for out in ("one", "two"):
        done(capsys, *DRAW, "--out", out)
    done(capsys, *DRAW, "--seed", 1, "--out", "two")
    one, two = here / "one", here / "two"
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files(one))
    assert (two / "a-cat-0.png").read_bytes() != (two / "a-cat-1.png").read_bytes()


def test_generate_takes_its_masks_from_the_drawing(here, capsys, monkeypatch):
    for method in ("encode", "extract"):
        monkeypatch.setattr(ldznet_core.hosts.ldm.LDMHost, method, fail(AssertionError(method)))
    done(capsys, *DRAW)


@pytest.mark.parametrize("method", ["znet", "rgbnet"])
def test_generate_with_decoders_that_take_no_features(here, capsys, method):
    assert call(capsys, *DRAW, "--method", method)[0] == 0


@pytest.mark.parametrize("method", ["attention", "noise"])
def test_generate_without_a_decoder_draws_the_same(here, capsys, monkeypatch, method):
    (plain,) = done(capsys, *DRAW, "--out", "plain")
    monkeypatch.setattr(ldznet_core.commands.shared, "load_decoder", fail(AssertionError("a decoder")))
    (line,) = done(capsys, *DRAW, "--out", "free", "--method", method, "--labels", "--refine")
    assert Path(line["image"]).read_bytes() == Path(plain["image"]).read_bytes()
    assert ("presence" in line["phrases"][0]) == (method == "attention")
    assert line["labels"] == "free/a-cat-0.labels.png"
    assert files(here / "free") == files(here / "plain") | {"a-cat-0.labels.png"}
    masks = np.stack([pixels(one["mask"]) for one in line["phrases"]])
    assert masks.max() > 64 and ((masks > 0).sum(0) <= 1).all()


def test_attention_is_taken_from_the_drawing(here, capsys, monkeypatch):
    observed = []
    observe = ldznet_core.hosts.ldm.LDMHost.observe
    for unused in ("encode", "extract", "denoise"):
        monkeypatch.setattr(ldznet_core.hosts.ldm.LDMHost, unused, fail(AssertionError(unused)))

    def record(host, z, *others, **how):
        observed.append(z)
        return observe(host, z, *others, **how)

    monkeypatch.setattr(ldznet_core.hosts.ldm.LDMHost, "observe", record)
    done(capsys, *DRAW, "--method", "attention", "--presence", "0")
    assert len(observed) == 1 and observed[0].std() > 0.9  # pure noise, to compare with


def test_queries_of_the_captions_half_are_taken_while_sampling(here, made):
    host = load_host(made / "mini.safetensors")
    chosen, guided, seen = plan(host.unet_config, 8, 16), host.guided, []
    plain, nothing = host.sample("a cat", 64, 128, seed=2)

    def record(z_t, timesteps, context, taps):
        seen.append((z_t.clone(), timesteps))
        return guided(z_t, timesteps, context, taps)

    host.guided = record
    drawn, queries = host.sample("a cat", 64, 128, seed=2, asked=chosen)
    assert nothing is None and torch.equal(plain, drawn)
    assert len(seen) == ldznet_core.hosts.ldm.STEPS
    assert not any(module._forward_hooks for module in host.model.unet.modules())

    modules, heard = chosen.modules(host.transformer), []
    for z_t, timesteps in seen:
        if timesteps[0] <= SETTLED:
            with torch.inference_mode(), overhear(modules) as one:
                host.model.unet(z_t, timesteps, host.embed(["a cat"]).context)
            heard.append(one)
    assert 1 < len(heard) < len(seen) and len(queries) == 1 and queries.size == (8, 16)
    for i, mean in enumerate(queries.cross):
        assert torch.allclose(mean, sum(one[f"cross {i}"] for one in heard) / len(heard), atol=1e-4)
    assert torch.allclose(queries.own[0], heard[-1]["own q"], atol=1e-4)


def test_generate_finds_nothing(here, capsys):
    status, (line,), errors = call(capsys, *DRAW, "--threshold", "1")
    assert status == 0 and len(errors) == 1 and "nothing was found" in errors[0]
    assert line["composite"] is None and line["inpainted"] is None
    assert files(here / "drawings") == {f"a-cat-0{end}.png" for end in ("", ".dog", ".cat", ".overlay")}


def test_generate_refuses_an_empty_caption(here, capsys):
    refused(capsys, here, "generate", " ", "--text", "cat")
    refused(capsys, here, "generate", "a cat", "--text", "cat", "--replace", " ")


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
