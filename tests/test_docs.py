"""What the pages say is there: what they link to, the commands, options, nodes and templates that they name."""

import re
import shlex
from pathlib import Path

import pytest

from ldznet_core.cli import COMMANDS, GROUPS, build_parser

ROOT = Path(__file__).parents[1]
HELP = ROOT / "web" / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *HELP.rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def base(page: Path) -> Path:
    """The folder that a page's links start from; ComfyUI takes those of help pages from `web/docs`."""
    return HELP if page.is_relative_to(HELP) else page.parent


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def pasted(page: Path) -> list[str]:
    """Calls of `ldznet` in blocks of shell code; an indented block is one, too."""
    text = page.read_text(encoding="utf-8")
    shell = "".join(code for language, code in FENCE.findall(text) if language in ("sh", "bash"))
    lines = re.sub(r"\\\n", " ", shell + "".join(re.findall(r"^ {4}ldznet.*\n(?: {8}.*\n)*", text, re.M)))
    return re.findall(r"^ *(ldznet .*)$", lines, re.M)


def options() -> str:
    """The usage of every command."""
    return " ".join(p.format_help() for c in COMMANDS for p in parsers(build_parser(c.split())))


def parsers(parser):
    """A parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for sub in action.choices.values():
                yield from parsers(sub)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_and_pictures_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = base(page) / path if path else page
        assert target.exists(), f"{link} is not there"
        assert not anchor or anchor in anchors(target), f"{link} names a heading that is not there"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_are_named_are_there(page):
    folders = "benchmarks|docs|ldznet_core|nodes|tests|tools"
    for path in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]*\w)", page.read_text(encoding="utf-8")):
        assert (base(page) / path).exists() or (ROOT / path).exists(), f"{path} is not there"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_pasted_commands_are_understood(page):
    for line in pasted(page):
        words = shlex.split(line, comments=True)[1:]
        build_parser(words).parse_args(words)  # raises InputError


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_options_in_the_text_exist(page):
    code, known = re.findall(r"`([^`\n]+)`", prose(page)), options()
    for command in re.findall(r"\bldznet ([a-z]+)", "\n".join(code)):
        assert command in COMMANDS or command in GROUPS, f"there is no ldznet {command}"
    for option in re.findall(r"^--[a-z-]+", "\n".join(code), re.M):
        assert option in known, f"no command has {option}"


def test_the_readme_has_two_bash_blocks_the_main_job_and_the_tests():
    job, tests = [code for language, code in FENCE.findall(README) if language == "bash"]
    assert "ldznet segment" in job and "pytest" not in job
    assert tests.rstrip().endswith("python -m pytest -n 2 --dist loadfile")


def test_the_readme_lists_the_nodes_as_comfyui_shows_them():
    code = "".join(file.read_text(encoding="utf-8") for file in ROOT.glob("nodes/*.py"))
    shown = re.findall(r'node_id="LDZNet\w+",\s+display_name="(.+?)(?: \(LD-ZNet\))?",', code)
    rows = re.findall(r"^\| (\*\*.+?) \|", README.partition("## How good")[0], re.M)
    assert sorted(shown) == sorted(name for row in rows for name in re.findall(r"\*\*(.+?)\*\*", row))


def test_templates_that_pages_name_are_there():
    names = set(re.findall(r"\*([a-z0-9]+(?:_[a-z0-9]+)+)\*", "".join(map(prose, PAGES))))
    assert names and names <= {file.stem for file in ROOT.glob("example_workflows/*.json")}
