"""What users read about the nodes in ComfyUI: the help pages with their pictures, and the translations."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "web" / "docs"
PICTURE = re.compile(r"!\[[^\]\n]+\]\(([^)\s]+)\)")
# The frontend reads these as a message's syntax, some versions of it in tooltips too: a "|" cuts the rest off.
SYNTAX = set("@{}|%")


@pytest.fixture(scope="module")
def schemas(pack_nodes):
    return {name: node.define_schema() for name, node in pack_nodes.items()}


def translation(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def entry(name: str, tooltip: str | None) -> dict:
    """A tooltip that cannot be said in a translation file is left to the definition."""
    return {"name": name, **({"tooltip": tooltip} if tooltip and not SYNTAX & set(tooltip) else {})}


def strings(value) -> list[str]:
    return [value] if isinstance(value, str) else [s for one in value.values() for s in strings(one)]


def test_every_node_has_a_page_with_a_picture(schemas):
    assert {page.stem for page in PAGES.glob("*.md")} == set(schemas)
    shown = set()
    for name in schemas:
        pictures = PICTURE.findall((PAGES / f"{name}.md").read_text(encoding="utf-8"))
        assert pictures, name
        shown.update(pictures)
    # The frontend looks for them beside the pages, and no page needs a large one.
    assert shown == {file.name for file in PAGES.iterdir() if file.suffix in (".jpg", ".png")}
    assert max((PAGES / picture).stat().st_size for picture in shown) <= 80 * 1024


def test_pages_name_every_input_and_output(schemas):
    for name, schema in schemas.items():
        page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {schema.display_name}\n")
        for row in [i.id for i in schema.inputs] + [o.display_name for o in schema.outputs]:
            assert f"\n| {row} |" in page, f"{name} does not explain {row}"


def test_english_repeats_the_definitions(schemas):
    for name, said in translation("en").items():
        schema = schemas[name]
        assert said == {
            "display_name": schema.display_name,
            "description": schema.description,
            **({"inputs": {i.id: entry(i.id, i.tooltip) for i in schema.inputs}} if schema.inputs else {}),
            "outputs": {str(i): entry(o.display_name, o.tooltip) for i, o in enumerate(schema.outputs)},
        }


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_translations_are_complete(schemas, language):
    said = translation(language)
    assert set(said) == set(schemas)
    for name, schema in schemas.items():
        assert said[name]["display_name"] and said[name]["description"]
        assert list(said[name].get("inputs", {})) == [i.id for i in schema.inputs]
        assert list(said[name]["outputs"]) == [str(i) for i in range(len(schema.outputs))]
        for ours, theirs in [
            *((said[name]["inputs"][i.id], i) for i in schema.inputs),
            *((said[name]["outputs"][str(i)], o) for i, o in enumerate(schema.outputs)),
        ]:
            assert ours["name"]
            assert language == "en" or bool(ours.get("tooltip")) == bool(theirs.tooltip)
    assert not [s for s in strings(said) if SYNTAX & set(s)]


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_the_category_is_the_same_everywhere(schemas, language):
    main = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))
    assert main == {"nodeCategories": {s.category: s.category for s in schemas.values()}}
