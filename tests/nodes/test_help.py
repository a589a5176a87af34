"""What users read about the nodes in ComfyUI: the help pages with their pictures, and the translations."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "web" / "docs"
PICTURE = re.compile(r"!\[[^\]\n]+\]\(([^)\s]+)\)")

spec = importlib.util.spec_from_file_location("make_locales", ROOT / "tools" / "make_locales.py")
make_locales = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_locales)


@pytest.fixture(scope="module")
def schemas(pack_nodes):
    return {name: node.define_schema() for name, node in pack_nodes.items()}


def translation(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


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


def test_english_is_what_the_tool_writes(schemas):
    assert translation("en") == make_locales.definitions(schemas)


def test_the_page_finds_english_help_where_it_looks_first(schemas):
    for name in schemas:
        assert (PAGES / name / "en.md").read_bytes() == (PAGES / f"{name}.md").read_bytes(), "run tools/make_locales.py"


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_translations_are_complete(schemas, language):
    conditioning = translation(language)
    assert set(conditioning) == set(schemas)
    for name, schema in schemas.items():
        assert conditioning[name]["display_name"] and conditioning[name]["description"]
        assert list(conditioning[name].get("inputs", {})) == [i.id for i in schema.inputs]
        assert list(conditioning[name]["outputs"]) == [str(i) for i in range(len(schema.outputs))]
        for ours, theirs in [
            *((conditioning[name]["inputs"][i.id], i) for i in schema.inputs),
            *((conditioning[name]["outputs"][str(i)], o) for i, o in enumerate(schema.outputs)),
        ]:
            assert ours["name"]
            assert language == "en" or bool(ours.get("tooltip")) == bool(theirs.tooltip)
    assert not [s for s in strings(conditioning) if make_locales.SYNTAX & set(s)]


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_the_category_is_the_same_everywhere(schemas, language):
    main = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))
    assert main == {"nodeCategories": {s.category: s.category for s in schemas.values()}}
