"""What is asked of the accordion: its values, and how they stand in a picture's text."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from .masks import Words

MASKS, INPAINT, PAINT = "masks only", "inpaint each phrase", "repaint where the words are"


@dataclass(frozen=True)
class Asked:
    """The values of the accordion, in the order of its components: what the API gives as `args`."""

    enabled: bool = False
    phrases: str = ""
    action: str = MASKS
    method: str = "attention"
    threshold: float = 0.5
    refine: bool = True
    grow: int = 4
    feather: int = 4
    invert: bool = False
    prompts: str = ""
    denoising: float = 0.4

    @classmethod
    def of(cls, *args) -> "Asked":
        """From the values of the components. An empty textbox is None in some versions of Gradio."""
        default = cls()
        names = [one.name for one in fields(cls)]
        return replace(default, **{name: value for name, value in zip(names, args, strict=False) if value is not None})

    @property
    def words(self) -> Words:
        return Words.of(
            self.phrases, method=self.method, threshold=self.threshold, refine=bool(self.refine), grow=self.grow,
            feather=self.feather, invert=bool(self.invert),
        )  # fmt: skip


# What is written into a picture's text and read back from it, by the names of `Asked`.
INFOTEXT = {one.name: f"LD-ZNet {one.name}" for one in fields(Asked) if one.name != "enabled"}


def reader(name: str) -> str | Callable[[dict], str | None]:
    """How a value is read back from a picture's text: by its key. Where inpaint prompts are not told there were none:
    those that stand in the page belong to another picture."""
    if name != "prompts":
        return INFOTEXT[name]
    return lambda texts: texts.get(INFOTEXT[name], "") if INFOTEXT["phrases"] in texts else None
