"""The XMem network (Sec. 2.2 to 2.4, appendix): encoders, sensory updates, decoder, aggregation.

Parameter names and shapes are those of the released checkpoints, which therefore load strictly. The
code is plain PyTorch. It computes in the type of the parameters: float64, float32, bfloat16 or
float16. In 16 bits the hidden state, shrinkage and aggregation are float32.

Shapes: B batch, O objects; H x W the image, multiples of 16; h x w = H/16 x W/16; CK, CV and CH the
channels of key, value and hidden state.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checkpoint
from .backbone import BasicBlock, KeyTrunk, conv3x3, stage
from .config import NetworkConfig
from .tuned import tuned


class XMem(nn.Module):
    """The XMem network, in evaluation mode when made.

    ``train()`` leaves the batch normalisations in evaluation mode.
    """

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NetworkConfig()
        self.key_encoder = KeyTrunk(config.width, config.key_blocks)
        self.key_proj = KeyProjection(16 * config.width, config.key_dim)
        self.value_encoder = ValueEncoder(config)
        self.decoder = Decoder(config)
        self.eval()

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> XMem:
        """The network whose parameters ``path`` holds; its sizes are read from their shapes.

        ``path`` is a released file (``XMem.pth``, or one without sensory memory), one written by
        ``torch.save(network.state_dict(), path)`` or with safetensors, or one of a training run, in
        which the parameters lie within other mappings or have a prefix such as ``module.``. No code
        in the file is run. A value encoder of 4 input channels, which sees one object at a time,
        gets a fifth channel of zero weights. Parameters keep their type and need no gradient.

        Raises FileNotFoundError where there is no file, and ValueError, which names the file and
        its first faults, where it does not hold exactly the parameters of an XMem network.
        """
        state = checkpoint.read(path)
        try:
            config = checkpoint.config_of(state)
            with torch.device("meta"):
                network = cls(config)
            checkpoint.check(state, network.state_dict())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        network.load_state_dict(state, strict=True, assign=True)
        return network.requires_grad_(False).to(device)

    def tuned(self, *, compile: bool = False) -> XMem:
        """A copy for inference alone: equal up to rounding, and faster.

        Each normalisation is folded into the convolution before it, and weights are stored
        channels-last. The copy can neither be trained nor saved for :meth:`from_checkpoint`.

        compile: also compiles the three stages with torch.compile. That takes a minute at the first
        frames, again for another image size, and once more when the number of objects changes.
        """
        copied = tuned(self)
        if compile:
            for stage_name in ("encode_key", "encode_value", "segment"):
                setattr(copied, stage_name, torch.compile(getattr(copied, stage_name)))
        return copied

    def train(self, mode: bool = True) -> XMem:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def encode_key(
        self, image: Tensor, *, need_shrinkage: bool = True, need_selection: bool = True
    ) -> tuple[Tensor, Tensor | None, Tensor | None, tuple[Tensor, Tensor, Tensor]]:
        """The memory key or query of an image, and its features (Sec. 2.2).

        image: [B, 3, H, W], normalised.

        Returns key [B, CK, h, w]; shrinkage [B, 1, h, w], at least 1; selection [B, CK, h, w],
        between 0 and 1; and the features at 1/16, 1/8 and 1/4 of the image's size. Shrinkage and
        selection are None where they are not needed.
        """
        features = self.key_encoder(image)
        key, shrinkage, selection = self.key_proj(features[0], need_shrinkage, need_selection)
        return key, shrinkage, selection, features

    def encode_value(
        self,
        image: Tensor,
        f16: Tensor,
        hidden: Tensor | None,
        masks: Tensor,
        *,
        deep_update: bool = True,
        object_chunk: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The memory value of a frame (Sec. 2.2).

        image: [B, 3, H, W], normalised. f16: its features at 1/16. hidden: [B, O, CH, h, w], or
        None. masks: probabilities [B, O, H, W]. deep_update: whether the hidden state is updated
        from the value (Sec. 2.4). object_chunk: objects at a time, None for all; the result is
        equal to rounding.

        Returns value [B, O, CV, h, w] and the hidden state.
        """
        total = masks.sum(1, keepdim=True)

        def encode(rows: slice) -> tuple[Tensor, Tensor | None]:
            own, state = masks[:, rows], None if hidden is None else hidden[:, rows]
            return self.value_encoder(image, f16, state, torch.stack([own, total - own], 2), deep_update)

        value, state = _by_chunks(encode, masks.shape[1], object_chunk)
        return value, state if deep_update else hidden

    def segment(
        self,
        features: tuple[Tensor, Tensor, Tensor],
        readout: Tensor,
        hidden: Tensor | None,
        *,
        selector: Tensor | None = None,
        update_hidden: bool = True,
        object_chunk: int | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """The masks of a frame (Sec. 2.4).

        features: those of :meth:`encode_key`. readout: [B, O, CV, h, w]. hidden: [B, O, CH, h, w],
        or None. selector: [B, O]; an object whose entry is 0 gets probability 0. object_chunk: as
        for :meth:`encode_value`.

        Returns the hidden state after this frame, or None unless ``update_hidden``; and the
        probabilities [B, 1 + O, H, W] float32, background first.
        """

        def decode(rows: slice) -> tuple[Tensor, Tensor | None]:
            state = None if hidden is None else hidden[:, rows]
            state, logits = self.decoder(features, readout[:, rows], state, update_hidden)
            return torch.sigmoid(logits.float()), state

        probability, renewed = _by_chunks(decode, readout.shape[1], object_chunk)
        if selector is not None:
            probability = probability * selector[..., None, None]
        return renewed, aggregate(probability)


def _by_chunks(
    call: Callable[[slice], tuple[Tensor, Tensor | None]], objects: int, size: int | None
) -> tuple[Tensor, Tensor | None]:
    """The results of ``call`` for the rows of at most ``size`` objects at a time, None for all."""
    if size is None or size >= objects:
        return call(slice(None))
    results = [call(slice(i, i + size)) for i in range(0, objects, size)]
    states = [state for _, state in results if state is not None]
    return torch.cat([x for x, _ in results], 1), torch.cat(states, 1) if states else None


def aggregate(probability: Tensor) -> Tensor:
    """Soft aggregation: independent probabilities [B, O, H, W] -> [B, 1 + O, H, W] that sum to 1.

    The background has probability prod(1 - p) over the objects. The odds p / (1 - p) of background
    and objects are normalised to 1. The computation and its result are float32.
    """
    p = probability.float()
    p = torch.cat([(1 - p).prod(1, keepdim=True), p], 1).clamp(1e-7, 1 - 1e-7)
    return torch.log(p / (1 - p)).softmax(1)


class KeyProjection(nn.Module):
    """Key, shrinkage s = x^2 + 1 and selection e = sigmoid(x) from features at 1/16 (Sec. 2.2)."""

    def __init__(self, channels_in: int, key_dim: int) -> None:
        super().__init__()
        self.key_proj = conv3x3(channels_in, key_dim)
        self.d_proj = conv3x3(channels_in, 1)
        self.e_proj = conv3x3(channels_in, key_dim)
        nn.init.orthogonal_(self.key_proj.weight)
        nn.init.zeros_(self.key_proj.bias)  # type: ignore[arg-type]

    def forward(
        self, f16: Tensor, need_shrinkage: bool, need_selection: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        shrinkage = _at_least_float32(self.d_proj(f16)) ** 2 + 1 if need_shrinkage else None
        selection = torch.sigmoid(self.e_proj(f16)) if need_selection else None
        return self.key_proj(f16), shrinkage, selection


class ValueEncoder(nn.Module):
    """ResNet-18 on image, mask and sum of the other masks, fused with f16; the deep update."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        w = config.width
        self.conv1, self.bn1 = nn.Conv2d(5, w, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(w)
        self.layer1 = stage(BasicBlock, w, w, config.value_blocks[0], 1)
        self.layer2 = stage(BasicBlock, w, 2 * w, config.value_blocks[1], 2)
        self.layer3 = stage(BasicBlock, 2 * w, 4 * w, config.value_blocks[2], 2)
        self.fuser = Fusion(16 * w + 4 * w, config.value_dim)
        if config.hidden_dim > 0:
            self.hidden_reinforce = HiddenReinforcer(config.value_dim, config.hidden_dim)

    def forward(
        self, image: Tensor, f16: Tensor, hidden: Tensor | None, masks: Tensor, deep_update: bool
    ) -> tuple[Tensor, Tensor | None]:
        o = masks.shape[1]
        x = torch.cat([image.unsqueeze(1).expand(-1, o, -1, -1, -1), masks.to(image.dtype)], 2).flatten(0, 1)
        x = F.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        g = self.layer3(self.layer2(self.layer1(x)))
        value = self.fuser(f16, g.unflatten(0, (-1, o)))
        if deep_update and hidden is not None:
            hidden = self.hidden_reinforce(value, hidden)
        return value, hidden


class ResidualBlock(nn.Module):
    """conv(relu(conv(relu(x)))) beside a shortcut: a convolution where the channels change."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.downsample = conv3x3(channels_in, channels_out) if channels_in != channels_out else None
        self.conv1 = conv3x3(channels_in, channels_out)
        self.conv2 = conv3x3(channels_out, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(torch.relu(self.conv1(torch.relu(x))))
        return y + (x if self.downsample is None else self.downsample(x))

    def shared(self, x: Tensor, g: Tensor) -> Tensor:
        """:meth:`forward` of x [B, C, h, w] joined to each g [B, O, C', h, w] -> [B O, *, h, w].

        All objects share x, so the convolutions of x are computed once.
        """
        assert self.downsample is not None
        y = self.conv2(torch.relu(_conv_shared(self.conv1, torch.relu(x), torch.relu(g))))
        return y + _conv_shared(self.downsample, x, g)


def _conv_shared(conv: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """conv([x, g]) of channels joined, computed by linearity as conv_x(x) + conv_g(g)."""
    weight_x, weight_g = conv.weight.split([x.shape[1], g.shape[2]], 1)
    y = F.conv2d(g.flatten(0, 1), weight_g, None, conv.stride, conv.padding).unflatten(0, g.shape[:2])
    return (y + F.conv2d(x, weight_x, conv.bias, conv.stride, conv.padding).unsqueeze(1)).flatten(0, 1)


class Fusion(nn.Module):
    """Fuses image features, which all objects share, with the features of each object.

    [B, C, h, w], [B, O, C', h, w] -> [B, O, CV, h, w].
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.block1 = ResidualBlock(channels_in, channels_out)
        self.attention = CBAM(channels_out)
        self.block2 = ResidualBlock(channels_out, channels_out)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        z = self.block1.shared(x, g)
        z = self.block2(z + self.attention(z))
        return z.unflatten(0, g.shape[:2])


class CBAM(nn.Module):
    """Convolutional block attention (Woo et al., ECCV 2018): gates of channels, then of pixels."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.ChannelGate = ChannelGate(channels, reduction)
        self.SpatialGate = SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        return self.SpatialGate(self.ChannelGate(x))


class ChannelGate(nn.Module):
    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        inner = channels // reduction
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        return x * torch.sigmoid(gate)[..., None, None]


class SpatialGate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.ModuleDict({"conv": nn.Conv2d(2, 1, 7, padding=3)})

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.spatial["conv"](pooled))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _gru(transform: nn.Conv2d, g: Tensor, hidden: Tensor) -> Tensor:
    """The gated update h' = f h (1 - u) + u n of Sec. 2.4, in which n does not depend on f.

    g: [B, O, *, h, w]. hidden: [B, O, CH, h, w]. The result is at least float32: what a frame adds
    to the state is often less than 16 bits resolve.
    """
    b, o = hidden.shape[:2]
    gates = transform(torch.cat([g, hidden.to(g.dtype)], 2).flatten(0, 1))
    f, u, n = _at_least_float32(gates).unflatten(0, (b, o)).chunk(3, 2)
    f, u = torch.sigmoid(f), torch.sigmoid(u)
    return f * hidden * (1 - u) + u * torch.tanh(n)


class HiddenReinforcer(nn.Module):
    """The deep update of the hidden state, from the value of a memory frame (Sec. 2.4)."""

    def __init__(self, value_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.transform = conv3x3(value_dim + hidden_dim, 3 * hidden_dim)
        nn.init.xavier_normal_(self.transform.weight)

    def forward(self, value: Tensor, hidden: Tensor) -> Tensor:
        return _gru(self.transform, value, hidden)


class HiddenUpdater(nn.Module):
    """The update of the hidden state at every frame, from the decoder's features at all scales."""

    def __init__(self, value_dim: int, decoder_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.g16_conv = nn.Conv2d(value_dim, decoder_dim, 1)
        self.g8_conv = nn.Conv2d(decoder_dim, decoder_dim, 1)
        self.g4_conv = nn.Conv2d(decoder_dim + 1, decoder_dim, 1)
        self.transform = conv3x3(decoder_dim + hidden_dim, 3 * hidden_dim)
        nn.init.xavier_normal_(self.transform.weight)

    def forward(self, g16: Tensor, g8: Tensor, g4: Tensor, hidden: Tensor) -> Tensor:
        """g16, g8, g4: [B O, *, ...]; g4 includes the logits. hidden: [B, O, CH, h, w]."""
        g8 = F.interpolate(g8, scale_factor=1 / 2, mode="area")
        g4 = F.interpolate(g4, scale_factor=1 / 4, mode="area")
        g = self.g16_conv(g16) + self.g8_conv(g8) + self.g4_conv(g4)
        return _gru(self.transform, g.unflatten(0, hidden.shape[:2]), hidden)


class UpsampleBlock(nn.Module):
    """Doubles the size and adds the image's features of that size."""

    def __init__(self, skip_dim: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.skip_conv = conv3x3(skip_dim, channels_in)
        self.out_conv = ResidualBlock(channels_in, channels_out)

    def forward(self, skip: Tensor, g: Tensor) -> Tensor:
        """skip [B, *, 2h, 2w], g [B O, *, h, w]."""
        skip = self.skip_conv(skip)
        g = F.interpolate(g, scale_factor=2, mode="bilinear", align_corners=False)
        g = (g.unflatten(0, (skip.shape[0], -1)) + skip.unsqueeze(1)).flatten(0, 1)
        return self.out_conv(g)


class Decoder(nn.Module):
    """From readout, hidden state and image features to a logit per pixel and object (Sec. 2.4)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        w, cv, ch, dim = config.width, config.value_dim, config.hidden_dim, config.decoder_dim
        self.fuser = Fusion(16 * w + cv + ch, cv)
        if ch > 0:
            self.hidden_update = HiddenUpdater(cv, dim, ch)
        self.up_16_8 = UpsampleBlock(8 * w, cv, dim)
        self.up_8_4 = UpsampleBlock(4 * w, dim, dim)
        self.pred = conv3x3(dim, 1)

    def forward(
        self, features: tuple[Tensor, Tensor, Tensor], readout: Tensor, hidden: Tensor | None, update_hidden: bool
    ) -> tuple[Tensor | None, Tensor]:
        f16, f8, f4 = features
        b, o = readout.shape[:2]
        g16 = self.fuser(f16, readout if hidden is None else torch.cat([readout, hidden.to(readout.dtype)], 2))
        g16 = g16.flatten(0, 1)
        g8 = self.up_16_8(f8, g16)
        g4 = self.up_8_4(f4, g8)
        logits = self.pred(torch.relu(g4))
        if hidden is not None:
            hidden = self.hidden_update(g16, g8, torch.cat([g4, logits], 1), hidden) if update_hidden else None
        logits = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
        return hidden, logits[:, 0].unflatten(0, (b, o))
