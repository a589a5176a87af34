"""Run once by ComfyUI-Manager and similar installers, and by WebUIs at every start; running it again does no harm.

Makes `models/ldznet`, checks that the bundled weights arrived whole, and says what to do next. Standard library only:
nothing is downloaded and no package is installed.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "ldznet_core" / "mini" / "weights"
FOLDER = "ldznet"


PLACES = {"custom_nodes": "ComfyUI", "extensions": "the WebUI"}  # folders that extensions live in, and whose they are


def program_folder(here: Path = HERE) -> Path | None:
    """The ComfyUI or WebUI that this folder is installed in: named by COMFYUI_PATH, or two levels up."""
    named = os.environ.get("COMFYUI_PATH")
    above = here.parents[1] if len(here.parents) > 1 else None
    for folder in (Path(named) if named else None, above if here.parent.name in PLACES else None):
        if folder and folder.is_dir():
            return folder
    return None


def damaged(weights: Path = WEIGHTS) -> list[str]:
    """Names of bundled files that are missing or differ from `checksums.json`, the list that came with them."""
    checksums = json.loads((weights / "checksums.json").read_text(encoding="utf-8"))
    return [
        name
        for name, expected in checksums.items()
        if not (weights / name).is_file() or hashlib.sha256((weights / name).read_bytes()).hexdigest() != expected
    ]


def main(here: Path = HERE, weights: Path = WEIGHTS) -> int:
    """Returns the exit status: 0 where all is well, 1 where the bundled weights are damaged."""
    say = sys.stdout.write
    program = program_folder(here)
    if program:
        try:
            (program / "models" / FOLDER).mkdir(parents=True, exist_ok=True)
            say(f"LD-ZNet Masks: decoders go into {program / 'models' / FOLDER}\n")
        except OSError as fault:
            say(f"LD-ZNet Masks: make the folder models/{FOLDER} yourself, it cannot be written ({fault.strerror})\n")
    else:
        say(
            "LD-ZNet Masks: neither inside ComfyUI's custom_nodes nor a WebUI's extensions, so no models/"
            f"{FOLDER} was made\n"
        )
    if bad := damaged(weights):
        say(f"LD-ZNet Masks: {', '.join(bad)} did not arrive whole: delete this folder and install it again\n")
        return 1
    if PLACES.get(here.parent.name) == "the WebUI":
        say("LD-ZNet Masks: ready: the tab Words to masks, and an accordion in txt2img and img2img\n")
    else:
        say(
            "LD-ZNet Masks: ready. Restart ComfyUI and open a workflow of this extension under Templates; "
            "the one called miniature_... runs as it is\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
