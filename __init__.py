"""LD-ZNet Masks for ComfyUI: words to masks with the diffusion model that is already loaded."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"
__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
