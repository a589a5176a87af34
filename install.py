"""Run once by ComfyUI-Manager and similar installers; running it again does no harm.

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


def comfyui_folder(here: Path = HERE) -> Path | None:
    """The ComfyUI that this folder is installed in: named by COMFYUI_PATH, or two levels up."""
    named = os.environ.get("COMFYUI_PATH")
    above = here.parents[1] if len(here.parents) > 1 else None
    for folder in (Path(named) if named else None, above if here.parent.name == "custom_nodes" else None):
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
    comfyui = comfyui_folder(here)
    if comfyui:
        try:
            (comfyui / "models" / FOLDER).mkdir(parents=True, exist_ok=True)
            say(f"LD-ZNet Masks: decoders go into {comfyui / 'models' / FOLDER}\n")
        except OSError as fault:
            say(f"LD-ZNet Masks: make the folder models/{FOLDER} yourself, it cannot be written ({fault.strerror})\n")
    else:
        say(f"LD-ZNet Masks: not inside ComfyUI's custom_nodes, so no models/{FOLDER} was made\n")
    if bad := damaged(weights):
        say(f"LD-ZNet Masks: {', '.join(bad)} did not arrive whole: delete this folder and install it again\n")
        return 1
    say(
        "LD-ZNet Masks: ready. Restart ComfyUI and open a workflow of this extension under Templates; "
        "the one called miniature_... runs as it is\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
