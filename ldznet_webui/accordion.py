"""The accordion in txt2img and img2img: masks of every picture from its own sampling, and what is done with them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import wraps

import gradio as gr
from modules import images, scripts, shared
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ldznet_core.backbones.queries import Queries
from ldznet_core.backbones.recording import Features
from ldznet_core.backbones.webui_capture import Capture
from ldznet_core.errors import InputError
from ldznet_core.imaging.images import to_tensor
from ldznet_core.imaging.naming import unique_slugs
from ldznet_core.segment.methods import METHODS

from . import host
from .asked import INFOTEXT, INPAINT, MASKS, PAINT, Asked, reader
from .inpaint import inpaint
from .masks import MOST_PIXELS, Finder, Found, Words, number

log = logging.getLogger("LD-ZNet")

TITLE = "LD-ZNet Masks"
NOTE = "LD-ZNet note"  # what the API is told of a run, beside its pictures
MASKS_KEY = "LD-ZNet masks"
REDRAWN = 0.05  # by which the colour of a square of 8 by 8 pixels differs where it was drawn anew


@dataclass
class Run:
    """One generation with the accordion switched on. `words` is None where what was asked makes no sense."""

    asked: Asked
    words: Words | None = None
    capture: Capture | None = None
    latents: Tensor | None = None  # [B, C, h, w] of the last sampling; None where only its pictures are known
    colours: Tensor | None = None  # [B, 3, h, w] in 0..1: the means of its pictures, of each position of the latents
    pictures: list[tuple[Image.Image, str]] = field(default_factory=list)  # masks and overlays, with their captions
    report: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def close(self) -> None:
        host.unwatch()
        if self.capture is not None:
            self.capture.close()


def guarded(callback: Callable) -> Callable:
    """A callback that never raises: what was asked wrongly becomes a comment under the picture, anything else a line
    in the log as well."""

    @wraps(callback)
    def call(self, p, *args, **kwargs):
        try:
            return callback(self, p, *args, **kwargs)
        except InputError as error:
            say(p, str(error))
        except Exception as error:
            log.exception("%s failed", callback.__name__)
            say(p, f"masks were not made ({type(error).__name__}: {error}): see the console")
        return None

    return call


def say(p, sentence: str) -> None:
    """Show a sentence under the pictures, once."""
    run = getattr(p, "_ldznet", None)
    if run is not None:
        if sentence in run.notes:
            return
        run.notes.append(sentence)
    log.warning("%s", sentence)
    p.comment(f"{TITLE}: {sentence}")


class Accordion(scripts.Script):
    """What `scripts/ldznet_webui.py` shows to the WebUI."""

    def title(self):
        return TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        actions = [MASKS, INPAINT, *([PAINT] if is_img2img else [])]
        default = Asked()
        with gr.Accordion(TITLE, open=False, elem_id=self.elem_id("accordion")):
            enabled = gr.Checkbox(label="Enable", value=False, elem_id=self.elem_id("enabled"))
            phrases = gr.Textbox(
                label="Phrases",
                value="",
                lines=2,
                placeholder="face\nred coat",
                info="What to find: one phrase a line, or several in a line with a vertical bar between them",
                elem_id=self.elem_id("phrases"),
            )
            action = gr.Radio(actions, value=MASKS, label="What to do", elem_id=self.elem_id("action"))
            with gr.Row():
                method = gr.Dropdown(
                    [*METHODS, *host.decoder_names()],
                    value=default.method,
                    label="Method",
                    info="attention works on any checkpoint of SD 1.x, 2.x and SDXL; decoders lie in models/ldznet",
                    elem_id=self.elem_id("method"),
                )
                threshold = gr.Slider(
                    0, 1, default.threshold, step=0.01, label="Threshold", elem_id=self.elem_id("threshold")
                )
            with gr.Row():
                refine = gr.Checkbox(label="Refine edges", value=default.refine, elem_id=self.elem_id("refine"))
                invert = gr.Checkbox(label="Invert", value=default.invert, elem_id=self.elem_id("invert"))
            with gr.Row():
                grow = gr.Slider(
                    -MOST_PIXELS, MOST_PIXELS, default.grow, step=1, label="Grow (pixels)", elem_id=self.elem_id("grow")
                )
                feather = gr.Slider(
                    0, MOST_PIXELS, default.feather, step=1, label="Feather (pixels)", elem_id=self.elem_id("feather")
                )
            prompts = gr.Textbox(
                label="Inpaint prompts",
                value="",
                lines=2,
                info="For 'inpaint each phrase': one prompt a line, in the order of the phrases. Where there is none, "
                "the prompt of the picture is used",
                elem_id=self.elem_id("prompts"),
            )
            denoising = gr.Slider(
                0, 1, default.denoising, step=0.01, label="Inpaint denoising strength",
                elem_id=self.elem_id("denoising"),
            )  # fmt: skip
        parts = dict(
            enabled=enabled, phrases=phrases, action=action, method=method, threshold=threshold, refine=refine,
            grow=grow, feather=feather, invert=invert, prompts=prompts, denoising=denoising,
        )  # fmt: skip
        self.infotext_fields = [(enabled, lambda texts: INFOTEXT["phrases"] in texts)]
        self.infotext_fields += [(parts[name], reader(name)) for name in INFOTEXT]
        self.paste_field_names = list(INFOTEXT.values())
        return [parts[one.name] for one in fields(Asked)]

    @guarded
    def process(self, p, *args):
        release(p)
        asked = replace(Asked.of(*args), **getattr(p, "_ldznet_axes", {}))
        if not asked.enabled:
            return
        try:
            number("denoising", asked.denoising, 0, 1)
            if asked.action not in (MASKS, INPAINT, PAINT):
                raise InputError(f"no action {asked.action!r}: choose one of {', '.join((MASKS, INPAINT, PAINT))}")
            if asked.action == PAINT and not hasattr(p, "init_images"):
                raise InputError(f"{PAINT!r} needs a picture: use it in img2img")
            words = asked.words
        except InputError:
            p._ldznet = Run(asked)  # takes the note to the API
            if asked.action == PAINT:
                shared.state.interrupt()
            raise
        p._ldznet = Run(asked, words)
        if asked.action == PAINT:
            paint(p, p._ldznet)
        write_infotext(p, asked)

    @guarded
    def process_before_every_sampling(self, p, *args, **kwargs):
        run = running(p)
        if run is None or run.asked.action == PAINT or run.words.method == "noise":
            return
        run.close()
        finder = Finder(run.words.method)
        run.capture = host.watch(finder.backbone, p, finder.wanted, run.words.method == "attention")

    @guarded
    def post_sample(self, p, ps, *args):
        run = running(p)
        if run is None:
            return
        run.close()
        decoded = getattr(ps.samples, "already_decoded", False)
        run.latents = None if decoded else ps.samples.detach().float().clone()

    @guarded
    def postprocess_batch(self, p, *args, images, **kwargs):
        run = running(p)
        if run is not None:
            run.colours = colours(images)

    @guarded
    def postprocess_image_after_composite(self, p, pp, *args):
        run = running(p)
        if run is None or run.asked.action == PAINT or shared.state.interrupted or shared.state.skipped:
            return
        picture = pp.image.convert("RGB")
        with Finder(run.words.method) as finder:
            found = find(p, run, finder, picture)
        note = found.missing()
        if note:
            say(p, note)
        place = len(run.report)
        run.report.append({"phrases": list(run.words.phrases), "found": found.present, "presence": found.presence})
        if run.asked.action == INPAINT:
            pp.image = inpaint(p, found, run.asked.prompts, run.asked.denoising)
        keep(p, run, found, place)

    @guarded
    def postprocess(self, p, processed, *args):
        run = getattr(p, "_ldznet", None)
        if run is None:
            return
        first, texts = len(processed.images), getattr(processed, "infotexts", None)
        if shared.opts.data.get("ldznet_show", True):
            aligned = texts is not None and len(texts) == first
            for picture, caption in run.pictures:
                processed.images.append(picture)
                if aligned:
                    texts.append(caption)
        processed.extra_generation_params = dict(processed.extra_generation_params)
        if run.report:
            processed.extra_generation_params[MASKS_KEY] = {"first": first, "pictures": run.report}
        if run.notes:
            processed.extra_generation_params[NOTE] = "; ".join(run.notes)
        release(p)


def running(p) -> Run | None:
    """The run of a generation; None where nothing, or nothing sensible, was asked."""
    run = getattr(p, "_ldznet", None)
    return run if run is not None and run.words is not None else None


def release(p) -> None:
    """Take hooks away and forget what was recorded, of this generation and of one that ended in an error."""
    run, p._ldznet = getattr(p, "_ldznet", None), None
    host.unwatch()
    if run is not None:
        run.close()


def write_infotext(p, asked: Asked) -> None:
    values = {name: getattr(asked, name) for name in INFOTEXT}
    values["phrases"] = " | ".join(asked.words.phrases)
    if asked.action != INPAINT:
        del values["denoising"]
    if asked.action != INPAINT or not asked.prompts.strip():
        del values["prompts"]
    p.extra_generation_params.update({INFOTEXT[name]: value for name, value in values.items()})


def find(p, run: Run, finder: Finder, picture: Image.Image) -> Found:
    """Masks of one picture of the batch: from the sampling where it was seen, else by a pass of the UNet."""
    index, capture = p.batch_index, run.capture
    if finder.reads_pixels:
        return finder.find(run.words, picture)
    whole = getattr(p, "paste_to", None) is None  # else only a part of the picture was sampled
    size = (picture.height // 8, picture.width // 8)
    exact = whole and picture.height % 8 == 0 and picture.width % 8 == 0 and not redrawn(run, index, picture)
    latents = run.latents if exact and run.latents is not None and tuple(run.latents.shape[-2:]) == size else None
    row = capture and exact and recorded(capture, run, size, index)
    if latents is not None and index < len(latents):
        z = latents[index : index + 1]
    elif row:  # after hires fix: the sampler's latent is not known, but where each position is
        z = finder.backbone.encode(to_tensor(picture))
    else:
        return finder.find(run.words, picture)
    return finder.find_sampled(run.words, picture, z, row or None)


def colours(images: Tensor) -> Tensor:
    """Means of pictures [B, 3, H, W] in squares of 8 by 8 pixels: [B, 3, H/8, W/8]."""
    return avg_pool2d(images.detach().float().cpu(), 8)


def redrawn(run: Run, index: int, picture: Image.Image) -> bool:
    """Whether a picture was changed after it was sampled, as ADetailer and the restoring of faces do: what the
    sampling showed is then not what is in the picture."""
    if run.colours is None or index >= len(run.colours):
        return False
    before, now = run.colours[index], colours(to_tensor(picture).permute(0, 3, 1, 2))[0]
    return now.shape != before.shape or bool((now - before).abs().amax() > REDRAWN)


def recorded(capture: Capture, run: Run, size: tuple[int, int], index: int) -> Features | Queries | None:
    """What the sampling showed of one picture of the batch; None where it passed no fitting step."""
    found = capture.queries(size) if run.words.method == "attention" else capture.features(size)
    return found.row(index) if found is not None and index < capture.pictures else None


def keep(p, run: Run, found: Found, place: int) -> None:
    """Masks and overlay of one picture, for the gallery and on disk."""
    seed, prompt = p.seeds[p.batch_index], p.prompts[p.batch_index]
    named = [*zip(unique_slugs(found.words.phrases), found.masks(), strict=True), ("overlay", found.overlay())]
    captions = [*found.words.phrases, "overlay"]
    for (name, picture), caption in zip(named, captions, strict=True):
        run.pictures.append((picture, f"{caption} (picture {place + 1})"))
        if p.save_samples() and shared.opts.data.get("ldznet_save", True):
            images.save_image(picture, p.outpath_samples, "", seed, prompt, "png", p=p, suffix=f"-mask-{name}")


def paint(p, run: Run) -> None:
    """Make the words' mask the mask of an img2img generation. Where nothing is found nothing is drawn."""
    try:
        with Finder(run.words.method) as finder:
            picture = p.init_images[0].convert("RGB")
            found = finder.find(run.words, picture)
        if not any(found.present):
            raise InputError(f"nothing was repainted: {found.missing()}")
    except BaseException:
        shared.state.interrupt()
        raise
    if note := found.missing():
        say(p, note)
    unfeathered = found.asked(feather=0)
    p.image_mask = unfeathered.union()
    p.mask_blur = int(run.asked.feather)
    run.report.append({"phrases": list(run.words.phrases), "found": found.present, "presence": found.presence})
    run.pictures.append((found.union(), " | ".join(found.words.phrases)))
    run.pictures.append((found.overlay(), "overlay"))
