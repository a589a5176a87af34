"""The page of results is what the tool makes of the recorded figures, and hides no goal that was missed."""

import shlex
from pathlib import Path

import pytest
import render_results

from ldznet_core.cli import build_parser

ROOT = Path(__file__).parents[1]
RESULTS = render_results.load()


def commands() -> list[str]:
    found = [one for result in RESULTS.values() for one in (result, *result.get("facts", {}).values())]
    return sorted({one["command"] for one in found if "command" in one})


def test_the_page_is_current():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page == render_results.render(RESULTS), "run tools/render_results.py"
    assert len(page.splitlines()) <= 240
    readme = render_results.README.read_text(encoding="utf-8")
    assert readme == render_results.readme(readme, RESULTS), "run tools/render_results.py"


def test_every_result_says_how_and_on_what_it_was_measured():
    for name, result in RESULTS.items():
        assert ("command" in result) != ("how" in result), name
        assert result["machine"]["cores"], name


@pytest.mark.parametrize("command", commands())
def test_commands_are_there(command):
    words = [word for word in shlex.split(command) if "=" not in word]
    if words[0] == "ldznet" and len(words) > 2:  # one that is named without its arguments has no more to check
        build_parser(words[1:]).parse_args(words[1:])  # raises InputError
    assert words[0] in ("ldznet", "python")
    for word in words:
        assert not word.endswith(".py") or (ROOT / word).exists(), word


def test_every_goal_is_shown_with_its_verdict():
    goals = [what for r in RESULTS.values() for what, fact in r.get("facts", {}).items() if "goal" in fact]
    rows = {row[0]: row[3] for row in render_results.facts(RESULTS, goals=True)}
    assert sorted(rows) == sorted(goals)
    assert rows["autoencoder on 64 new scenes"] == "**missed**"


def test_every_setting_shows_what_was_chosen():
    rows = {row[0]: row[2] for row in render_results.settings(RESULTS)}
    assert sorted(rows) == sorted(what for r in RESULTS.values() for what in r.get("settings", {}))
    one, four = (RESULTS["sweep_attention"]["settings"]["attention: noises"]["tried"][n]["mIoU"] for n in "14")
    assert rows["attention: noises"] == f"**1: {one}**, 4: {four}"
    assert all("**" in text for text in rows.values())


def test_scores_are_percent_with_their_spread_and_both_sides_of_the_edge_step():
    def row(method: str, refined: bool, mean: float, std: float) -> dict:
        return {"set": "s", "method": method, "text": "", "refined": refined, "miou": {"mean": mean, "std": std}}

    result = {"rows": [row("a", False, 0.5, 0.0), row("a", True, 0.625, 0.0), row("b", False, 0.25, 0.013)]}
    table = render_results.compare("mIoU", "miou", {"A": ("a", ""), "B": ("b", "")}, result)
    assert table.splitlines() == ["| mIoU | A | B |", "| --- | --- | --- |", "| s | 50.0 → 62.5 | 25.0 ± 1.3 |"]


def test_a_block_is_shown_at_its_best_timestep_and_beside_other_sweeps():
    def row(number: int, timestep: int, mean: float) -> dict:
        score = {"mean": mean, "std": 0.0}
        block = ["latent", "middle_block"][number]
        return {"block": block, "number": number, "grid": [2, 2], "timestep": timestep, "ap": score, "miou": score}

    rows = [row(1, 300, 0.5), row(1, 400, 0.75), row(0, 300, 0.25), row(0, 400, 0.25)]
    lines = list(render_results.blocks(rows, {"other": [row(1, 300, 0.125), row(0, 300, 0.25)]}, 300))
    assert lines == [
        ["1", "middle_block", "2x2", "400", "75.0", "75.0", "50.0", "12.5"],
        ["", "latent", "2x2", "", "25.0", "25.0", "25.0", "25.0"],
    ]
