"""Each thing that was found drawn anew, by img2img generations inside that of the picture."""

import contextlib

from modules import processing, shared
from PIL import Image

from .masks import Found


def inpaint(p, found: Found, prompts: str, denoising: float) -> Image.Image:
    """The picture of a generation with each phrase that was found drawn anew, one after the other. `prompts` holds one
    a line, in the order of the phrases; where there is none, the prompt of the picture is used."""
    lines = [line.strip() for line in prompts.splitlines()]
    picture, index = found.picture, p.batch_index
    masks = found.asked(feather=0).masks()
    there = [place for place, present in enumerate(found.present) if present]
    shared.state.job_count += len(there)
    for place in there:
        if shared.state.interrupted or shared.state.skipped:
            break
        prompt = lines[place] if place < len(lines) and lines[place] else p.prompts[index]
        inner = inner_generation(p, picture, masks[place], prompt, p.negative_prompts[index], p.seeds[index])
        inner.mask_blur, inner.denoising_strength = int(found.words.feather), denoising
        try:
            with without_history():
                drawn = processing.process_images(inner).images
        finally:
            inner.close()
        picture = drawn[0] if drawn else picture
    return picture


def inner_generation(p, picture: Image.Image, mask: Image.Image, prompt: str, negative: str, seed: int):
    """An img2img generation of one picture with the settings of another, without scripts."""
    inner = processing.StableDiffusionProcessingImg2Img(
        init_images=[picture], resize_mode=0, mask=mask, inpainting_fill=1, inpaint_full_res=True,
        inpaint_full_res_padding=32, sd_model=p.sd_model, outpath_samples=p.outpath_samples,
        outpath_grids=p.outpath_grids, prompt=prompt, negative_prompt=negative, styles=[], seed=seed,
        sampler_name=p.sampler_name, batch_size=1, n_iter=1, steps=p.steps, cfg_scale=p.cfg_scale, width=p.width,
        height=p.height, tiling=p.tiling, restore_faces=False, do_not_save_samples=True, do_not_save_grid=True,
        override_settings={},
    )  # fmt: skip
    if getattr(p, "scheduler", None):
        inner.scheduler = p.scheduler
    inner.image_mask = mask
    inner.scripts, inner.script_args = None, ()
    return inner


@contextlib.contextmanager
def without_history():
    """Inside, a generation does not overwrite the file of the last one's settings."""
    before = shared.cmd_opts.no_prompt_history
    shared.cmd_opts.no_prompt_history = True
    try:
        yield
    finally:
        shared.cmd_opts.no_prompt_history = before
