"""Writes locales/en/nodeDefs.json from the nodes' definitions, and the English help pages where the page looks first.

    python tools/make_locales.py

It needs the ComfyUI engine that the tests run on (README). Chinese and Japanese texts are written by hand; the tests
say where they are not complete.
"""

import json
import shutil
from pathlib import Path

import engine

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "web" / "docs"
# The page takes these for the syntax of a message, and a "|" cuts the rest of a tooltip off.
SYNTAX = set("@{}|%")


def translatable(name: str, tooltip: str | None) -> dict[str, str]:
    """A name with its tooltip; one that has the signs of SYNTAX is left to the definition."""
    return {"name": name, **({"tooltip": tooltip} if tooltip and not SYNTAX & set(tooltip) else {})}


def definitions(schemas: dict) -> dict:
    """What nodeDefs.json says of nodes, from their schemas by id."""
    return {
        name: {
            "display_name": schema.display_name,
            "description": schema.description,
            **({"inputs": {i.id: translatable(i.id, i.tooltip) for i in schema.inputs}} if schema.inputs else {}),
            "outputs": {str(n): translatable(o.display_name, o.tooltip) for n, o in enumerate(schema.outputs)},
        }
        for name, schema in schemas.items()
    }


def main() -> None:
    engine.start()
    nodes = engine.node_classes(engine.load_pack())
    texts = definitions({name: node.define_schema() for name, node in nodes.items()})
    file = ROOT / "locales" / "en" / "nodeDefs.json"
    file.write_text(json.dumps(texts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in nodes:  # asked for before <name>.md, which other languages get
        (PAGES / name).mkdir(exist_ok=True)
        shutil.copyfile(PAGES / f"{name}.md", PAGES / name / "en.md")


if __name__ == "__main__":
    main()
