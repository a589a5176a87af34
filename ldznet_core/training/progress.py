"""What a run tells while it trains: a bar on the terminal, losses in a file, and TensorBoard where it is installed."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..imaging.files import replacing
from .loop import Moment

EVERY = 5.0  # seconds between two looks at the losses: reading one waits for a GPU


class Progress:
    """Takes in the loss of each step and tells of it now and then. Nothing is shown where stderr is no terminal.

    `losses.jsonl` in the run's folder gets a line a step. Call `close` when the run ends, however it ends.
    """

    def __init__(self, folder: Path, first: int, clock: Callable[[], float] = time.monotonic):
        self.file, self.clock = folder / "losses.jsonl", clock
        folder.mkdir(parents=True, exist_ok=True)
        keep_lines(self.file, first)
        self.waiting: list[tuple[int, Tensor]] = []
        self.mean: float | None = None
        self.first, self.begun, self.seen, self.start = first, clock(), clock(), None
        self.bar, self.board = open_bar(first), open_board(folder)

    def step(self, moment: Moment, loss: Tensor) -> None:
        """After step number `moment.step`, counted from 1."""
        self.waiting.append((moment.step, loss))
        self.start = (moment.progress, self.clock()) if self.start is None else self.start
        late = self.clock() - self.seen > EVERY or moment.step == self.first + 1
        if late or loss.device.type == "cpu":
            self.flush()
        if late:
            self.seen = self.clock()
            self.show(moment)

    def flush(self) -> None:
        """Write the losses since the last time."""
        losses = [(step, float(loss)) for step, loss in self.waiting]
        self.waiting = []
        with open(self.file, "a", encoding="utf-8") as file:
            for step, loss in losses:
                file.write(json.dumps({"step": step, "loss": loss}) + "\n")
        for step, loss in losses:
            self.mean = loss if self.mean is None else 0.98 * self.mean + 0.02 * loss
            if self.board:
                self.board.add_scalar("loss", loss, step)

    def show(self, moment: Moment) -> None:
        """The state of the run on the terminal."""
        progress, since = self.start
        seconds = self.clock() - since
        speed = (moment.step - self.first) / max(self.clock() - self.begun, 1e-9)
        done = moment.progress - progress
        left = f"  {span((1 - moment.progress) * seconds / done)} left" if done > 0 else ""
        self.bar(moment, f"loss {self.mean:.4f}  {speed:.2f} steps/s{left}")

    def scores(self, step: int, scores: dict[str, float], sheet: np.ndarray | None) -> None:
        """Scores of a validation, with its sheet of masks, uint8 [H, W, 3]."""
        if self.board:
            for name, value in scores.items():
                self.board.add_scalar(name, value, step)
            if sheet is not None:
                self.board.add_image("masks", sheet, step, dataformats="HWC")

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self.bar(None, "")
            if self.board:
                self.board.close()


def keep_lines(file: Path, steps: int) -> None:
    """Leave out lines of steps after `steps`: a run that was killed may have written some that it now takes again."""
    if file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
        whole = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= steps]
        with replacing(file) as unfinished:
            unfinished.write_text("".join(f"{line}\n" for line in whole), encoding="utf-8")


def span(seconds: float) -> str:
    """A time in two units at most: "2 h 05 min", "3 min 20 s", "8 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def open_bar(first: int) -> Callable[[Moment | None, str], None]:
    """Shows a moment and a text on the terminal, by tqdm where it is installed; None ends the bar."""
    if not sys.stderr.isatty():
        return lambda moment, text: None
    try:
        from tqdm import tqdm
    except ImportError:
        return plain_bar
    bar = tqdm(total=1000, bar_format="{percentage:3.0f} % |{bar}| {desc}", file=sys.stderr)

    def show(moment: Moment | None, text: str) -> None:
        if moment is None:
            bar.close()
            return
        bar.n = round(1000 * min(1, moment.progress))
        bar.set_description_str(f"step {moment.step}  {text}")

    return show


def plain_bar(moment: Moment | None, text: str) -> None:
    line = "\n" if moment is None else f"\r\033[K{100 * moment.progress:3.0f} %  step {moment.step}  {text}"
    sys.stderr.write(line)
    sys.stderr.flush()


def open_board(folder: Path) -> Any:
    """A writer for TensorBoard; None where that is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def out_of_memory(batch: int, at_once: int, phrases: int, size: int, spares: bool) -> str:
    """What to lower where a step does not fit into memory; `spares` says whether checkpointing is still to be had."""
    ways = []
    if at_once > phrases:  # those of a picture go together
        ways.append(f"--at-once {at_once // 2} (now {at_once}; the batch of {batch} stays the same)")
    elif phrases > 1:
        ways.append(f"--phrases 1 (now {phrases}), --at-once 1")
    if spares:
        ways.append("--checkpointing (now off)")
    if size > 64:
        ways.append(f"a smaller --size (now {size})")
    used = ""
    if torch.cuda.is_available():
        used = f" of {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"
    return f"training does not fit into the memory{used}: try {', or '.join(ways or ['a device with more memory'])}"
