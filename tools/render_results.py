"""Renders docs/results.md, and the table of methods in README, from benchmarks/results/*.json.

    python tools/render_results.py

Each file holds what one command measured: `command` (`how` where it is none), `machine`, and any of
- `rows`: what `ldznet evaluate` prints, as fractions;
- `facts`: by name `measured`, with `goal` and `met` where there was a goal, and a `command` of its own;
- `settings`: by name the value that was `chosen`, and the scores of every value that was `tried`;
- other tables, by their names.
`miniature` is the side of the pictures of the miniature that was measured, where another than the bundled one was.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from ldznet_core.mini.evaluation import OOD_STYLES as STYLES
from ldznet_core.mini.evaluation import SEEN, UNSEEN

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
INTRO = """# Results

`python tools/render_results.py` makes this page from `benchmarks/results`, which holds every figure, those that are \
not shown here among them. Everything was measured with the bundled miniature on two CPU cores; weights of real size \
were random. Nothing was measured on trained weights of Stable Diffusion, and no time was taken on a GPU. Scores are \
percent. Goals for scores are the gains that the paper reports, or our own. [Decisions](decisions.md) says what the \
figures mean and what was decided on them.

† was measured with the miniature that was bundled before, which drew 128 pixels, and not yet again.
"""
# Files of each table, in the order of its rows.
FACTS = (
    "build", "grow", "evaluate", "evaluate_seeds", "without_features", "light_alone", "light",
    "light_few", "distil", "attention", "checks", "cost", "full_size", "transformers", "mini_dit", "reference",
    "recognise", "commands", "folder", "comfyui", "capture", "steer", "bench", "memory", "refine", "training",
)  # fmt: skip
SETTINGS = ("build", "sweep_attention", "fill", "mini_dit", "presence", "labels")
SECTIONS = {"evaluate_seeds": "Kinds of decoder", "evaluate": "Bundled decoders and methods without"}
README, README_HEAD = ROOT / "README.md", "| method | passes for P phrases | new scenes | unseen emoji | absent |"
METHODS = {  # README's: what it is called there, passes for P phrases, method and text
    "mark every thing, whatever the word": ("0", "mark everything", ""),
    "noise estimates": ("4 (P + 1)", "noise", "phrase"),
    "attention": ("1, and a short one", "attention", "empty"),
    "attention of the miniature transformer": ("1, and a short one", "transformer's attention", "empty"),
    "attention, while sampling": ("a short one", "attention, captured", "caption"),
    "ZNet, a decoder of the latent alone": ("P of the decoder", "znet", ""),
    "LD-ZNet, a decoder of latent and feature maps": ("1, and P of the decoder", "ldznet", "phrase"),
    "light, a decoder of 1 MB on latent, maps and attention: the default": ("1", "light", "empty"),
}
EDGES = "before and after the edge step"

Result = dict
Line = list[str]


def load(folder: Path = RESULTS) -> dict[str, Result]:
    """Results by the names of their files."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def table(head: Line, rows: list[Line]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def section(title: str, *parts: str) -> str:
    return "\n\n".join([f"## {title}", *parts]) + "\n"


def percent(score: dict[str, float] | None) -> str:
    """A score of `ldznet evaluate`; "-" where there is none."""
    if score is None:
        return "-"
    mean, spread = 100 * score["mean"], 100 * score["std"]
    return f"{mean:.1f} ± {spread:.1f}" if spread else f"{mean:.1f}"


def compare(title: str, name: str, columns: dict[str, tuple[str, str]], *results: Result) -> str:
    """One score of every set. A column is a method and its text; "a → b" is before and after the edge step."""
    rows = [row for result in results for row in result["rows"]]
    cells = {(row["set"], row["method"], row["text"], row["refined"]): percent(row[name]) for row in rows}
    lines = []
    for dataset in dict.fromkeys(row["set"] for row in rows):
        pairs = ([cells.get((dataset, *key, refined)) for refined in (False, True)] for key in columns.values())
        lines.append([dataset, *(" → ".join(filter(None, pair)) for pair in pairs)])
    return table([title, *columns], lines)


def readme_table(*results: Result) -> str:
    """README's: mIoU before and after the edge step, and what is marked of the absent in new scenes."""
    rows = {(r["set"], r["method"], r["text"], r["refined"]): r for result in results for r in result["rows"]}

    def miou(dataset: str, *method: str) -> str:
        pair = (rows.get((dataset, *method, refined)) for refined in (False, True))
        return " → ".join(percent(row["miou"]) for row in pair if row)

    lines = [README_HEAD, "|---" * README_HEAD.count(" | ") + "|---|"]
    for name, (passes, *method) in METHODS.items():
        absent = percent(rows[(SEEN, *method, False)]["false_area"])
        lines.append(f"| {name} | {passes} | {miou(SEEN, *method)} | {miou(UNSEEN, *method)} | {absent} |")
    return "\n".join(lines) + "\n"


def readme(text: str, results: dict[str, Result]) -> str:
    """README with its table made anew."""
    before, after = text.split(README_HEAD)
    table = readme_table(results["evaluate"], results["mini_dit"])
    return before + table + after[after.index("\n\n") + 1 :]


def how(name: str, result: Result) -> str:
    """What to run, or the section that says so where the command is long."""
    section = SECTIONS.get(name)
    return f"[{section}](#{section.lower().replace(' ', '-')}){mark(result)}" if section else code(result)


def code(result: Result) -> str:
    return (f"`{result['command']}`" if "command" in result else result["how"]) + mark(result)


def mark(result: Result) -> str:
    return " †" if "miniature" in result else ""


def facts(results: dict[str, Result], goals: bool) -> Iterator[Line]:
    """The facts that had a goal, or those that had none."""
    for name in FACTS:
        for what, fact in results[name]["facts"].items():
            if ("goal" in fact) == goals:
                verdict = [fact["goal"], "met" if fact["met"] else "**missed**"] if goals else []
                yield [what, fact["measured"], *verdict, how(name, results[name] | fact)]


def settings(results: dict[str, Result]) -> Iterator[Line]:
    for name in SETTINGS:
        for what, setting in results[name]["settings"].items():
            shown, values = setting["shown"], []
            for value, scores in setting["tried"].items():
                text = f"{value}: " + " / ".join(str(scores[score]) for score in shown)
                values.append(f"**{text}**" if value == setting["chosen"] else text)
            yield [what, " / ".join(shown), ", ".join(values), how(name, results[name])]


def controlled(result: Result) -> str:
    """What each choice of features scored: IoU at 0.5, of several sets their mean, and the absent of the last."""
    others = [of for of in dict.fromkeys(row["set"] for row in result["rows"]) if of not in (SEEN, UNSEEN, *STYLES)]
    columns = {
        "styles that only the denoiser knew": ("iou", others), SEEN: ("iou", [SEEN]), UNSEEN: ("iou", [UNSEEN]),
        **{style: ("iou", [style]) for style in STYLES},
        "mean of these four": ("iou", STYLES), "absent, new scenes": ("absent", [SEEN]),
    }  # fmt: skip
    scores = {(row["reads"], row["set"]): row for row in result["rows"]}

    def shown(values: list[dict[str, float]]) -> str:
        mean = sum(value["mean"] for value in values) / len(values)
        spread = values[0]["std"] if len(values) == 1 else 0
        return f"{mean:.1f} ± {spread:.1f}" if spread else f"{mean:.1f}"

    lines = [
        [reads, *(shown([scores[reads, one][what] for one in sets]) for what, sets in columns.values())]
        for reads in dict.fromkeys(row["reads"] for row in result["rows"])
    ]
    return table(["reads", *columns], lines)


def edges(result: Result) -> Iterator[Line]:
    for dataset, values in result[EDGES].items():
        yield [dataset, *(" → ".join(map(str, pair)) for pair in values.values())]


def blocks(rows: list[dict], others: dict[str, list[dict]], timestep: int) -> Iterator[Line]:
    """Each block of a sweep at its best timestep, then at `timestep` there and in the other sweeps."""
    scores = [{(row["block"], row["timestep"]): row for row in one} for one in (rows, *others.values())]
    for name in dict.fromkeys(row["block"] for row in rows):
        best = max((row for row in rows if row["block"] == name), key=lambda row: row["ap"]["mean"])
        latent = name == "latent"  # of which no timestep is read
        about = [str(best["number"] or ""), name, "{}x{}".format(*best["grid"])]
        yield [
            *about, "" if latent else str(best["timestep"]), percent(best["ap"]), percent(best["miou"]),
            *(percent(one[name, timestep]["ap"]) for one in scores),
        ]  # fmt: skip


def render(results: dict[str, Result]) -> str:
    scores, photographs, seeds, refined = (
        results[name] for name in ("evaluate", "photographs", "evaluate_seeds", "refine")
    )
    transformer, controls, few = (results[name] for name in ("mini_dit", "light", "light_few"))
    baseline = {"mark everything": ("mark everything", "")}
    kinds = {"RGBNet": ("rgbnet", ""), "ZNet": ("znet", "")}
    texts = {f"LD-ZNet, {text or 'no text'}": ("ldznet", text or "empty") for text in ("phrase", "caption", "")}
    free = {
        "attention": ("attention", "empty"), "captured": ("attention, captured", "caption"),
        "noise": ("noise", "phrase"), "transformer": ("transformer's attention", "empty"),
    }  # fmt: skip
    decoders = {"light": ("light", "empty"), "LD-ZNet": ("ldznet", "phrase"), "ZNet": ("znet", "")}
    others = {"twice the positions to a side": results["sweep_positions"]["rows"]}
    return "\n".join([
        INTRO,
        section(
            "Goals",
            table(["what", "measured", "goal", "", "how"], list(facts(results, goals=True))),
        ),
        section(
            "Kinds of decoder",
            f"{code(seeds)}: mean ± standard deviation over three seeds that were trained alike, with LD-ZNet's "
            f"features under the phrase, the caption or no text. Each set holds {seeds['scenes']} scenes.",
            compare("mIoU", "miou", baseline | kinds | texts, seeds),
        ),
        section(
            "What light reads",
            f"{code(controls)}: IoU at 0.5 of light decoders that read this beside the latent, after "
            f"{controls['steps']} steps; seeds: {controls['rows'][0]['seeds']}. One style of training was left out.",
            controlled(controls),
            f"{code(few)}: the same after {few['steps']} steps on masks of {few['scenes']} scenes in one style, as "
            "people have them who make a decoder for their checkpoint. The denoiser knows five more styles by pictures "
            "alone.",
            controlled(few),
        ),
        section(
            "Bundled decoders and methods without",
            f"{code(scores)}, for the miniature transformer {code(transformer)}, for photographs {code(photographs)}: "
            "before and after the edge step. Light has 0.5 million parameters, LD-ZNet and ZNet have six. *Absent* is "
            "the share of a picture that is marked for a noun that is not there. What the miniature draws, each draws "
            f"itself. Sets hold {scores['scenes']} scenes, that of photographs {photographs['scenes']}.",
            compare("mIoU", "miou", baseline | decoders | free, transformer, scores, photographs),
            compare("absent", "false_area", decoders | free, transformer, scores, photographs),
        ),
        section(
            "Settings",
            "One setting is changed at a time, on validation scenes (the optimisers' apart). What was chosen is bold.",
            table(["setting", "score", "value: score", "how"], list(settings(results))),
        ),
        section(
            "Blocks and timesteps",
            f"{code(results['sweep'])}: masks decoded from one feature map by a small decoder, mean ± standard "
            "deviation over three trainings. The table has each block at its best timestep t, and at t = 300 with the "
            "same pictures at twice the size (`--size 256`, one training).",
            "[![AP of every block at every timestep](pictures/sweep.png)](pictures/sweep.svg)",
            table(
                ["", "block", "positions", "t", "AP", "mIoU", "AP at t = 300", *others],
                list(blocks(results["sweep"]["rows"], others, 300)),
            ),
        ),
        section(
            "Edges",
            f"{code(refined)}: masks of the bundled light decoder on 512 pixels, before and after the edge step.",
            table(["set", *next(iter(refined[EDGES].values()))], list(edges(refined))),
        ),
        section(
            "Time, memory and agreement",
            table(["what", "measured", "how"], list(facts(results, goals=False))),
        ),
    ])  # fmt: skip


if __name__ == "__main__":
    found = load()
    PAGE.write_text(render(found), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8"), found), encoding="utf-8")
