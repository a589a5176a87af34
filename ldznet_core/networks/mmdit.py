"""The multimodal diffusion transformer (MM-DiT; Esser et al., 2024) with the state-dict names of Stable Diffusion 3.

Text tokens and image tokens have their own weights in every block and attend to one joint sequence, text first.
Tensors in, tensors out: knows nothing of files, words or masks.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import attention, merge_heads, split_heads, timestep_embedding

FREQUENCIES = 256  # of the timestep's sinusoids
HEAD = 64  # channels of an attention head, in every model of the family


@dataclass(frozen=True)
class MMDiTConfig:
    """Sizes. `table` is the side of the position table: the largest picture has `table` * `patch` latent positions a
    side. `qk_norm`: queries and keys are normalised, as in SD 3.5."""

    width: int = 256
    blocks: int = 4
    channels: int = 16
    patch: int = 2
    context_dim: int = 96
    table: int = 32
    qk_norm: bool = True

    @property
    def heads(self) -> int:
        return self.width // HEAD


def position_table(side: int, width: int) -> Tensor:
    """Fixed sinusoids of column and row: [1, side * side, width]."""
    frequency = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    one = torch.cat([angle.sin(), angle.cos()], dim=1)  # [side, width / 2]
    columns, rows = one.expand(side, -1, -1), one[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)[None].float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """[B, N, C] scaled and shifted by [B, C] after a layer norm without weights."""
    x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class Modulation(nn.Sequential):
    """The condition [B, C] -> `count` vectors [B, C], all zero before training."""

    def __init__(self, width: int, count: int):
        super().__init__(nn.SiLU(), nn.Linear(width, count * width))
        nn.init.zeros_(self[1].weight)
        nn.init.zeros_(self[1].bias)
        self.count = count

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return super().forward(condition).chunk(self.count, dim=1)


class HeadNorm(nn.Module):
    """Root-mean-square norm over the channels of a head."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HEAD))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, eps=1e-6)


class StreamAttention(nn.Module):
    """One stream's part of the joint attention: its queries, keys and values, and what is made of the outputs."""

    def __init__(self, width: int, qk_norm: bool, ends: bool):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.ln_q, self.ln_k = (HeadNorm() if qk_norm else nn.Identity() for _ in range(2))
        if not ends:
            self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (split_heads(part, part.shape[-1] // HEAD) for part in self.qkv(x).chunk(3, dim=-1))
        return self.ln_q(q), self.ln_k(k), v  # each [B, heads, N, 64]


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Stream(nn.Module):
    """A block's weights for text or for image. `ends`: nothing reads this stream after the block's attention."""

    def __init__(self, width: int, qk_norm: bool, ends: bool = False):
        super().__init__()
        self.attn = StreamAttention(width, qk_norm, ends)
        self.adaLN_modulation = Modulation(width, 2 if ends else 6)
        if not ends:
            self.mlp = FeedForward(width)

    def before(self, x: Tensor, condition: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
        """Queries, keys and values, and the modulation that `after` needs."""
        shift, scale, *rest = self.adaLN_modulation(condition)
        return self.attn(modulate(x, shift, scale)), tuple(rest)

    def after(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        gate, shift, scale, gate_mlp = modulation
        x = x + gate[:, None] * self.attn.proj(attended)
        return x + gate_mlp[:, None] * self.mlp(modulate(x, shift, scale))


class JointAttention(nn.Module):
    """Queries, keys and values, [B, heads, T + N, 64] each -> [B, T + N, C]. A module, so that hooks can read it."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return merge_heads(attention(q, k, v))


class JointBlock(nn.Module):
    """Text [B, T, C] and image [B, N, C] through one block; the text is None after the last block."""

    def __init__(self, width: int, qk_norm: bool, last: bool):
        super().__init__()
        self.context_block = Stream(width, qk_norm, ends=last)
        self.x_block = Stream(width, qk_norm)
        self.attention = JointAttention()
        self.last = last

    def forward(self, text: Tensor, image: Tensor, condition: Tensor) -> tuple[Tensor | None, Tensor]:
        of_text, text_modulation = self.context_block.before(text, condition)
        of_image, image_modulation = self.x_block.before(image, condition)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(of_text, of_image, strict=True))  # [B, heads, T + N, 64]
        attended = self.attention(q, k, v)  # [B, T + N, C]
        text_part, image_part = attended[:, : text.shape[1]], attended[:, text.shape[1] :]
        image = self.x_block.after(image, image_part, image_modulation)
        return None if self.last else self.context_block.after(text, text_part, text_modulation), image


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = Modulation(width, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.linear(modulate(x, *self.adaLN_modulation(condition)))


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # [B, C, h, w] -> [B, h/p * w/p, width]


class TimestepEmbed(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(timesteps, FREQUENCIES).to(self.mlp[0].weight.dtype))


class MMDiT(nn.Module):
    """Noisy latents [B, C, h, w], timesteps [B] (1000 sigma) and contexts [B, T, D] -> velocity noise - z.

    h and w are multiples of the patch; positions are those of the table's centre, so that a smaller picture sees a
    part of what a larger one does. Raises ValueError for a latent that is larger than the table or not whole patches.
    """

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.config = c = config
        self.x_embedder = PatchEmbed(c.channels, c.patch, c.width)
        self.t_embedder = TimestepEmbed(c.width)
        self.context_embedder = nn.Linear(c.context_dim, c.width)
        self.register_buffer("pos_embed", position_table(c.table, c.width))
        self.joint_blocks = nn.ModuleList(
            JointBlock(c.width, c.qk_norm, last=i == c.blocks - 1) for i in range(c.blocks)
        )
        self.final_layer = FinalLayer(c.width, c.patch**2 * c.channels)

    def positions(self, height: int, width: int) -> Tensor:
        """[1, height * width, C] of the table's centre."""
        side = self.config.table
        if height > side or width > side:
            raise ValueError(f"{height} x {width} patches are more than the {side} x {side} of the position table")
        top, left = (side - height) // 2, (side - width) // 2
        grid = self.pos_embed.unflatten(1, (side, side))
        return grid[:, top : top + height, left : left + width].flatten(1, 2)

    def forward(self, z_t: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        patch = self.config.patch
        if z_t.shape[-2] % patch or z_t.shape[-1] % patch:
            raise ValueError(f"a latent of {z_t.shape[-2]} x {z_t.shape[-1]} is not whole patches of {patch}")
        height, width = z_t.shape[-2] // patch, z_t.shape[-1] // patch
        image = self.x_embedder(z_t) + self.positions(height, width)  # [B, N, C]
        text = self.context_embedder(context)  # [B, T, C]
        condition = self.t_embedder(timesteps)
        for block in self.joint_blocks:
            text, image = block(text, image, condition)
        out = self.final_layer(image, condition).unflatten(2, (patch, patch, -1)).unflatten(1, (height, width))
        out = out.permute(0, 5, 1, 3, 2, 4)  # [B, C, h/p, p, w/p, p]
        return out.flatten(4, 5).flatten(2, 3)


# ---- 4-channel latents in a transformer of 16 channels -------------------------------------------
# SD 3's class wants 16 channels and patches of 2 x 2. A patch holds one position of a 4-channel latent: its four
# values, halved, at each of the four places of the first four channels. This keeps lengths: unit noise in the 16
# channels is unit noise in the 4, and what lies outside those directions is neither read nor written.

CHANNELS, PATCH = 16, 2


def widen(z: Tensor) -> Tensor:
    """Latents [B, 4, h, w] -> [B, 16, 2h, 2w]."""
    wide = F.interpolate(z, scale_factor=PATCH, mode="nearest") / PATCH
    return F.pad(wide, (0, 0, 0, 0, 0, CHANNELS - z.shape[1]))


def narrow(wide: Tensor, channels: int = 4) -> Tensor:
    """Latents [B, 16, 2h, 2w] -> [B, 4, h, w]: undoes `widen`, and drops what is not in its image."""
    return F.avg_pool2d(wide[:, :channels], PATCH) * PATCH


def widened(narrow_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a transformer of few channels and patch 1 as those of one of 16 channels and patch 2 that does on
    widened latents what the first does on plain ones."""
    state = dict(narrow_state)
    kernel = state["x_embedder.proj.weight"]  # [C, 4, 1, 1]
    wide = kernel.new_zeros(len(kernel), CHANNELS, PATCH, PATCH)
    wide[:, : kernel.shape[1]] = kernel / PATCH
    state["x_embedder.proj.weight"] = wide
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        rows = state[name]  # [4, ...]
        wide = rows.new_zeros(PATCH**2, CHANNELS, *rows.shape[1:])
        wide[:, : len(rows)] = rows / PATCH
        state[name] = wide.flatten(0, 1)
    return state
