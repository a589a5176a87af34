"""Keeps what a benchmark measured in benchmarks/results; `tools/render_results.py` says what such a file may hold."""

import json
import os
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, command: str, **measured) -> None:
    """Write benchmarks/results/`name`.json."""
    result = {"command": f"python benchmarks/{command}", "machine": {"cores": os.cpu_count()}, **measured}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def setting(chosen: str, tried: dict[str, dict[str, float]], *shown: str) -> dict:
    """A setting with the scores of every value that was tried, of which `shown` are shown."""
    return {"chosen": chosen, "shown": list(shown), "tried": tried}
