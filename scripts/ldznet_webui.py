"""What AUTOMATIC1111's WebUI, Forge and Forge Neo load. All else is in `ldznet_webui`.

The class must be here: a WebUI takes the scripts that a file in this folder defines.
"""

from modules import script_callbacks

from ldznet_webui import accordion, api, host, settings, tab


class Script(accordion.Accordion):
    pass


host.bring_font()
script_callbacks.on_before_ui(settings.add_axes)
script_callbacks.on_ui_settings(settings.add_settings)
script_callbacks.on_ui_tabs(tab.build)
script_callbacks.on_after_component(tab.remember)
script_callbacks.on_app_started(api.add_routes)
script_callbacks.on_cfg_denoiser(host.on_cfg_denoiser)
