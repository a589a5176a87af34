"""The page of settings, and the axes of the X/Y/Z plot."""

import gradio as gr
from modules import scripts, shared

from ldznet_core.segment.methods import METHODS

from . import host

SECTION = ("ldznet", "LD-ZNet Masks")


def add_settings() -> None:
    for name, label in (
        ("ldznet_show", "Show masks and overlay beside the pictures, and return them by the API"),
        ("ldznet_save", "Save masks and overlay beside the pictures"),
    ):
        info = shared.OptionInfo(True, label, gr.Checkbox, {"interactive": True}, section=SECTION)
        shared.opts.add_option(name, info)


def set_value(name: str):
    """What an axis does with a value: the accordion's value of that name is another in this picture."""

    def apply(p, value, values) -> None:
        p._ldznet_axes = {**getattr(p, "_ldznet_axes", {}), name: value}

    return apply


def add_axes() -> None:
    """Phrases, threshold and method as axes, once."""
    module = next(
        (data.module for data in scripts.scripts_data if "xyz_grid" in data.script_class.__module__), None
    )
    if module is None:
        return
    if any(option.label.startswith("[LD-ZNet]") for option in module.axis_options):
        return
    module.axis_options.extend(
        [
            module.AxisOption("[LD-ZNet] Phrases", str, set_value("phrases")),
            module.AxisOption("[LD-ZNet] Threshold", float, set_value("threshold")),
            module.AxisOption(
                "[LD-ZNet] Method", str, set_value("method"), choices=lambda: [*METHODS, *host.decoder_names()]
            ),
        ]
    )
