"""How many drawings a classifier names, beside how many sprites: `python benchmarks/recognise.py mini-build`.

Reads what `ldznet mini build recognise` found and writes benchmarks/results/recognise.json.
"""

import json
import sys
from pathlib import Path

from writing import write_result

GOAL = 0.8  # of drawings, named at once


def shares(found: dict[str, float]) -> str:
    return f"{100 * found['top1']:.1f} % at once, {100 * found['top5']:.1f} % in five guesses"


def main(folder: Path) -> None:
    found = json.loads((folder / "recognition.json").read_text())
    drawings, known, unseen = (found[name] for name in ("drawings", "sprites of its training", "unseen sprites"))
    facts = {
        f"drawings of the miniature ({drawings['count']}) that a classifier names": {
            "measured": shares(drawings), "goal": f"{100 * GOAL:g} % at once", "met": drawings["top1"] >= GOAL,
        },
        f"composed pictures of unseen sprites ({unseen['count']}) that the same classifier names": {
            "measured": shares(unseen),
        },
        f"composed pictures of the sprites that it learnt from ({known['count']}) that it names": {
            "measured": shares(known),
        },
    }  # fmt: skip
    if transformer := found.get("drawings of mini-dit"):
        what = f"drawings of the miniature transformer ({transformer['count']}) that it names"
        facts[what] = {"measured": shares(transformer)}
    write_result("recognise", "recognise.py mini-build", facts=facts)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
