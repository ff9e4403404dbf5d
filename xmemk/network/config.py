"""The sizes of an XMem network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Channels and depths of the network; the defaults are those of the released files.

    key_dim, value_dim, hidden_dim: channels of key, value and hidden state. A ``hidden_dim`` of 0
    makes a network without sensory memory.
    width: channels of the first stage of both encoders.
    key_blocks, value_blocks: residual blocks in each of the three stages of the two encoders.
    decoder_dim: channels of the decoder at 1/8 and 1/4 of the image's size.

    Raises ValueError for sizes of which no network can be made.
    """

    key_dim: int = 64
    value_dim: int = 512
    hidden_dim: int = 64
    width: int = 64
    key_blocks: tuple[int, int, int] = (3, 4, 6)
    value_blocks: tuple[int, int, int] = (2, 2, 2)
    decoder_dim: int = 256

    def __post_init__(self) -> None:
        if self.value_dim < 16:
            raise ValueError(
                f"value_dim: wanted at least 16, which the channel attention divides by, got {self.value_dim}"
            )
        for name in ("key_dim", "width", "decoder_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted at least 1, got {getattr(self, name)}")
        if self.hidden_dim < 0 or min(*self.key_blocks, *self.value_blocks) < 1:
            raise ValueError(f"wanted hidden_dim >= 0 and at least one block in each stage, got {self}")
