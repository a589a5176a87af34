"""Where the miniature's weights are."""

from pathlib import Path

BUNDLED = Path(__file__).parent.parent / "mini" / "weights"
