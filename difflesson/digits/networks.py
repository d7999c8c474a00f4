"""The two digit networks: a small U-Net that denoises, and a small CNN that classifies.

Both take the noise level as `log_snr`, so that they can be used with any variance-preserving schedule, and both are
fully convolutional, so that 28x28 MNIST and the 8x8 digits of scikit-learn go through the same code. Under which
schedule and in which size a network has learned, its `Blueprint` says: one that was built from it, so every loaded one,
carries them as `network.schedule` and `network.size`. Both compute in the dtype of their weights, whatever that of x.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class NoiseEmbedding(nn.Module):
    """Fourier features of the noise angle `atan(sigma / alpha)`, then a small MLP."""

    def __init__(self, width: int, frequencies: int = 32):
        super().__init__()
        self.register_buffer("frequency", torch.exp(torch.linspace(0, math.log(256.0), frequencies)), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, log_snr: Tensor) -> Tensor:
        """Embed `log_snr` (batch,) as (batch, width). Infinite values (no noise, or nothing but noise) are fine."""
        angle = torch.atan(torch.exp(-log_snr.to(self.frequency.dtype) / 2))[:, None] * self.frequency
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=1))  # of (batch, 2 frequencies)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group norm; the embedding scales and shifts the middle (FiLM)."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels_out)
        self.norm2 = nn.GroupNorm(8, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(batch, channels_in, height, width) -> (batch, channels_out, height, width)."""
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(functional.silu(h))


class Attention(nn.Module):
    """Self-attention over the pixels, added to its input."""

    def __init__(self, channels: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the same shape."""
        batch, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (batch, pixels, channels)
        qkv = self.qkv(tokens).view(batch, height * width, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, pixels, channels / heads)
        # Written out: the fused kernel took a sixth of a training step here (CPU, bf16), for 49 pixels.
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(channels // self.heads), dim=-1)
        mixed = (weights.to(v) @ v).transpose(1, 2).reshape(tokens.shape)
        return x + self.out(mixed).transpose(1, 2).view(x.shape)


class DigitUNet(nn.Module):
    """A class-conditional denoiser with a null label.

    `network(x, log_snr, label) -> v`, the prediction of `v = alpha eps - sigma x0`, or of eps or x0 if it was trained
    for that. Label `classes` is the null label: it asks for the unconditional prediction. Pixels are first folded 2x2
    into channels, which costs nothing on digits and makes every later convolution four times cheaper.

    Args: widths: channels at the folded resolution and at half of it (multiples of 8);  classes: number of labels;
    embedding: width of the conditioning vector.  Images: (batch, 1, H, W) with H and W multiples of 4.
    """

    def __init__(self, widths: tuple[int, int] = (64, 128), classes: int = 10, embedding: int = 128):
        super().__init__()
        fine, coarse = widths
        self.classes = classes
        self.noise = NoiseEmbedding(embedding)
        self.label = nn.Embedding(classes + 1, embedding)
        self.enter = nn.Conv2d(4, fine, 3, padding=1)
        self.down_fine = ResidualBlock(fine, fine, embedding)
        self.shrink = nn.Conv2d(fine, coarse, 3, stride=2, padding=1)
        self.down_coarse = ResidualBlock(coarse, coarse, embedding)
        self.attention = Attention(coarse)
        self.middle = ResidualBlock(coarse, coarse, embedding)
        self.up_coarse = ResidualBlock(2 * coarse, coarse, embedding)
        self.grow = nn.Conv2d(coarse, fine, 3, padding=1)
        self.up_fine = ResidualBlock(2 * fine, fine, embedding)
        self.leave = nn.Sequential(nn.GroupNorm(8, fine), nn.SiLU(), nn.Conv2d(fine, 4, 3, padding=1))
        blocks = (module for module in self.modules() if isinstance(module, ResidualBlock))
        for last in (self.leave[-1], self.attention.out, *(block.conv2 for block in blocks)):
            nn.init.zeros_(last.weight)  # every branch starts as the identity: the first steps are stable
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        """x: (batch, 1, H, W), log_snr: (batch,), label: (batch,) in 0..classes  ->  v: (batch, 1, H, W)."""
        if not len(x):  # which torch does not fold
            return x
        x = x.to(self.enter.weight.dtype)
        condition = functional.silu(self.noise(log_snr) + self.label(label))  # (batch, embedding)
        fine = self.down_fine(self.enter(functional.pixel_unshuffle(x, 2)), condition)  # (batch, fine, H/2, W/2)
        coarse = self.down_coarse(self.shrink(fine), condition)  # (batch, coarse, H/4, W/4)
        h = self.middle(self.attention(coarse), condition)
        h = self.up_coarse(torch.cat([h, coarse], dim=1), condition)
        h = self.grow(functional.interpolate(h, scale_factor=2.0))
        h = self.up_fine(torch.cat([h, fine], dim=1), condition)
        return functional.pixel_shuffle(self.leave(h), 2)


class DigitClassifier(nn.Module):
    """A CNN that names the digit in a clean or, told the noise level, in a noisy image.

    Trained on clean images it is the *judge* (its penultimate features also define the digit-FID); trained at all
    noise levels it is the *guide* of classifier guidance. Group norm rather than batch norm: one image's logits never
    depend on the others in the batch, so the gradient of a summed log-probability is the gradient of each.
    """

    def __init__(self, widths: tuple[int, ...] = (64, 128), classes: int = 10, embedding: int = 64):
        super().__init__()
        self.classes = classes
        self.noise = NoiseEmbedding(embedding)
        self.enter = nn.Conv2d(4, widths[0], 3, padding=1)
        pairs = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.blocks = nn.ModuleList(ResidualBlock(i, o, embedding) for i, o in pairs)
        self.norm = nn.GroupNorm(8, widths[-1])
        self.leave = nn.Linear(widths[-1], classes)

    def features(self, x: Tensor, log_snr: Tensor | None = None) -> Tensor:
        """Penultimate features, (batch, widths[-1]); `log_snr=None` means clean images."""
        x = x.to(self.enter.weight.dtype)
        if log_snr is None:
            log_snr = x.new_full(x.shape[:1], math.inf)
        condition = functional.silu(self.noise(log_snr))
        h = self.enter(functional.pixel_unshuffle(x, 2))  # (batch, widths[0], H/2, W/2)
        for i, block in enumerate(self.blocks):
            h = block(h if i == 0 else functional.max_pool2d(h, 2), condition)  # each block at half the last one's size
        return functional.silu(self.norm(h)).mean(dim=(2, 3))

    def forward(self, x: Tensor, log_snr: Tensor | None = None) -> Tensor:
        """x: (batch, 1, H, W), log_snr: (batch,) or None  ->  logits: (batch, classes)."""
        return self.leave(self.features(x, log_snr))
