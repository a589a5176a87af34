"""The tab *Words to masks*: a picture or a folder of them, phrases, masks, and the way to Inpaint upload."""

import logging
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from html import escape
from pathlib import Path

import gradio as gr
from PIL import Image

from ldznet_core.errors import InputError
from ldznet_core.imaging.images import read_image, to_rgb, write_pngs
from ldznet_core.imaging.naming import unique_slugs
from ldznet_core.segment.methods import METHODS

from . import host
from .masks import MOST_PIXELS, Finder, Found, Words

log = logging.getLogger("LD-ZNet")

TITLE, ID = "Words to masks", "ldznet"
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
# The two components of img2img's Inpaint upload, by the last part of their names.
_inpaint: dict[str, gr.components.Component] = {}
_stopped = threading.Event()


def remember(component, **kwargs) -> None:
    """The WebUI made a component: keep those of Inpaint upload."""
    if kwargs.get("elem_id") in ("img_inpaint_base", "img_inpaint_mask"):
        _inpaint[kwargs["elem_id"]] = component


def note(sentence: str, kind: str = "note") -> str:
    return f"<p class='ldznet-{kind}'>{escape(sentence)}</p>" if sentence else ""


def guarded(count: int) -> Callable:
    """A handler with `count` outputs, the note last: it never raises, and where it cannot do what is asked the note
    says why and all else stays as it is."""

    def decorate(handler: Callable) -> Callable:
        @wraps(handler)
        def call(*args):
            try:
                return handler(*args)
            except InputError as error:
                sentence = str(error)
            except Exception as error:
                log.exception("%s failed", handler.__name__)
                sentence = f"{type(error).__name__}: {error}"
            return (*[gr.update()] * (count - 1), note(sentence, "error"))

        return call

    return decorate


def settings(method, threshold, refine, grow, feather, invert) -> dict:
    return dict(
        method=method, threshold=threshold, refine=bool(refine), grow=grow, feather=feather, invert=bool(invert)
    )


def label(number: int, phrase: str) -> str:
    """A phrase as a switch is named: two may be equal."""
    return f"{number + 1}: {phrase}"


def labels(found: Found) -> list[str]:
    return [label(number, phrase) for number, phrase in enumerate(found.words.phrases)]


def shown(found: Found, chosen: list[str]) -> tuple:
    """Overlay, label map, masks, the mask of the chosen phrases, and a note."""
    numbers = [number for number, name in enumerate(labels(found)) if name in (chosen or [])]
    masks = [*zip(found.masks(), found.words.phrases, strict=True)]
    return found.overlay(), found.label_map(), masks, found.union(numbers), note(found.missing())


@guarded(7)
def segment(picture: Image.Image | None, text: str, *values) -> tuple:
    """State, switches, and what `shown` gives."""
    words = Words.of(text or "", **settings(*values))
    if picture is None:
        raise InputError("no picture was given: drop one on the left")
    picture = to_rgb(picture)

    def work() -> Found:
        with Finder(words.method) as finder:
            return finder.find(words, picture)

    found = host.exclusive(work)
    there = [name for name, present in zip(labels(found), found.present, strict=True) if present]
    return (found, gr.update(choices=labels(found), value=there), *shown(found, there))


@guarded(5)
def change(found: Found | None, chosen: list[str], *values) -> tuple:
    """The same soft masks with other settings: no model runs."""
    if found is None:
        return (*[gr.update()] * 4, "")
    asked = settings(*values)
    del asked["method"]
    return shown(found.asked(**asked), chosen)


@guarded(3)
def send(found: Found | None, mask: Image.Image | None) -> tuple:
    """Picture and mask for Inpaint upload."""
    if found is None or mask is None:
        raise InputError("there is no mask yet: press Find masks first")
    if not mask.convert("L").getbbox():
        raise InputError("the mask is empty: switch on a phrase that was found, or lower the threshold")
    return found.picture, mask.convert("RGB"), note("sent to img2img, Inpaint upload")


def batch(folder: str, target: str, text: str, *values) -> Iterator[str]:
    """Masks of every picture in a folder, written beside each other; yields how far it is. One bad picture never
    ends the others."""
    _stopped.clear()
    try:
        words = Words.of(text or "", **settings(*values))
        paths, target = pictures_in(folder), output_folder(folder, target)
    except InputError as error:
        yield note(str(error), "error")
        return
    failures: list[str] = []
    for number, path in enumerate(paths):
        if _stopped.is_set():
            yield summary(f"stopped after {number} of {len(paths)} pictures", failures)
            return
        yield summary(f"picture {number + 1} of {len(paths)}: {path.name}", failures)
        try:
            one(path, target, words)
        except InputError as error:
            failures.append(str(error))
        except Exception as error:
            log.exception("%s failed", path.name)
            failures.append(f"{path.name}: {type(error).__name__}: {error}")
    yield summary(f"done: masks of {len(paths) - len(failures)} of {len(paths)} pictures are in {target}", failures)


def one(path: Path, target: Path, words: Words) -> None:
    picture = read_image(path)

    def work() -> Found:
        with Finder(words.method) as finder:
            return finder.find(words, picture)

    found = host.exclusive(work)
    named = zip(unique_slugs(words.phrases), found.masks(), strict=True)
    files = {target / f"{path.name}.{slug}.png": mask for slug, mask in named}
    write_pngs({**files, target / f"{path.name}.overlay.png": found.overlay()})


def summary(sentence: str, failures: list[str]) -> str:
    return note(sentence) + "".join(note(failure, "error") for failure in failures[-20:])


def pictures_in(folder: str) -> list[Path]:
    path = Path((folder or "").strip())
    if not (folder or "").strip() or not path.is_dir():
        raise InputError(f"no folder {folder!r}: give the path of a folder with pictures on the WebUI's machine")
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"no picture in {path}: it needs files of {', '.join(sorted(SUFFIXES))}")
    return found


def output_folder(folder: str, target: str) -> Path:
    """Where masks go: a folder `masks` in that of the pictures unless another is given."""
    path = Path((target or "").strip()) if (target or "").strip() else Path(folder.strip()) / "masks"
    if path.resolve() == Path(folder.strip()).resolve():
        raise InputError("masks would be taken for pictures the next time: write them into another folder")
    return path


def stop() -> str:
    _stopped.set()
    return note("stopping after this picture")


def build() -> list[tuple]:
    """The tab, as the WebUI wants it."""
    default = Words(("",))
    with gr.Blocks(analytics_enabled=False) as blocks:
        found = gr.State(None)
        with gr.Row():
            with gr.Column():
                picture = gr.Image(type="pil", label="Picture", elem_id=f"{ID}_picture", height=420)
                phrases = gr.Textbox(
                    label="Phrases", lines=3, placeholder="face\nred coat", elem_id=f"{ID}_phrases",
                    info="What to find: one phrase a line, or several in a line with a vertical bar between them",
                )  # fmt: skip
                find = gr.Button("Find masks", variant="primary", elem_id=f"{ID}_find")
                method = gr.Dropdown(
                    [*METHODS, *host.decoder_names()], value=default.method, label="Method", elem_id=f"{ID}_method",
                    info="attention works on any checkpoint of SD 1.x, 2.x and SDXL; decoders lie in models/ldznet",
                )  # fmt: skip
                threshold = gr.Slider(0, 1, default.threshold, step=0.01, label="Threshold", elem_id=f"{ID}_threshold")
                grow = gr.Slider(
                    -MOST_PIXELS, MOST_PIXELS, default.grow, step=1, label="Grow (pixels)", elem_id=f"{ID}_grow"
                )
                feather = gr.Slider(
                    0, MOST_PIXELS, default.feather, step=1, label="Feather (pixels)", elem_id=f"{ID}_feather"
                )
                with gr.Row():
                    refine = gr.Checkbox(label="Refine edges", value=default.refine, elem_id=f"{ID}_refine")
                    invert = gr.Checkbox(label="Invert", value=default.invert, elem_id=f"{ID}_invert")
            with gr.Column():
                said = gr.HTML("", elem_id=f"{ID}_note")
                overlay = gr.Image(
                    type="pil", label="Overlay", interactive=False, elem_id=f"{ID}_overlay", height=420
                )
                chosen = gr.CheckboxGroup([], label="Phrases in the mask", elem_id=f"{ID}_chosen")
                mask = gr.Image(type="pil", label="Mask", interactive=False, elem_id=f"{ID}_mask", height=320)
                to_inpaint = gr.Button("Send to Inpaint upload", elem_id=f"{ID}_to_inpaint")
                with gr.Accordion("Mask of each phrase, label map", open=False):
                    masks = gr.Gallery(label="Masks", elem_id=f"{ID}_masks")
                    label_map = gr.Image(type="pil", label="Label map", interactive=False, elem_id=f"{ID}_labels")
        with gr.Accordion("Folder", open=False, elem_id=f"{ID}_batch"):
            folder = gr.Textbox(label="Folder of pictures", elem_id=f"{ID}_folder")
            target = gr.Textbox(label="Folder for masks (empty: masks, in that folder)", elem_id=f"{ID}_target")
            with gr.Row():
                start = gr.Button("Find masks of all", elem_id=f"{ID}_start")
                end = gr.Button("Stop", elem_id=f"{ID}_stop")
            progress = gr.HTML("", elem_id=f"{ID}_progress")

        values = [method, threshold, refine, grow, feather, invert]
        results = [overlay, label_map, masks, mask, said]
        find.click(segment, [picture, phrases, *values], [found, chosen, *results])
        for slider in (threshold, grow, feather):
            slider.release(change, [found, chosen, *values], results)
        for switch in (refine, invert):
            switch.change(change, [found, chosen, *values], results)
        chosen.change(change, [found, chosen, *values], results)
        start.click(batch, [folder, target, phrases, *values], [progress])
        end.click(stop, [], [progress])
        if len(_inpaint) == 2:
            targets = [_inpaint["img_inpaint_base"], _inpaint["img_inpaint_mask"]]
            to_inpaint.click(send, [found, mask], [*targets, said])
    return [(blocks, TITLE, ID)]
