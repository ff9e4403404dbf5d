"""Reading and writing video and masks, and the bundled clip."""

from pathlib import Path

# The clip of the demo; its README.md beside it names its authors and licence.
BUNNY = Path(__file__).parent / "bunny"
