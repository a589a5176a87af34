"""The extension for AUTOMATIC1111's WebUI, Forge and Forge Neo: a tab, an accordion, an API, settings and X/Y/Z axes.

`scripts/ldznet_webui.py` is what a WebUI loads. Only `host.py` knows which WebUI is running; masks are made by
`ldznet_core`.
"""
