"""The building blocks of the latent-diffusion UNet, with the module names that every SD checkpoint uses.

A transformer block may carry one more cross-attention (`attn3`) that reads another network's feature map:
that is all LD-ZNet adds (paper section 3.3). Knows nothing of how blocks are arranged.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOL_HEADS = 8  # the attention pool of the paper always has eight heads, whatever the UNet has


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over [B, heads, tokens, d]; `causal` hides from a token those after it."""
    if q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad:
        # The CPU's fused kernel is slow backwards: written out, in the precision that q has, it trains 1.5 times
        # faster on small grids.
        with torch.autocast("cpu", enabled=False):
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            if causal:
                scores = scores + torch.full_like(scores[0, 0], -torch.inf).triu(1)
            return scores.softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, N, C] -> [B, heads, N, C/heads]


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # [B, heads, N, d] -> [B, N, heads*d]


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoids of the timestep, cosines first: [B] -> [B, dim]."""
    half = dim // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, device=timesteps.device) / half)
    angle = timesteps.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class CrossAttention(nn.Module):
    """Multi-head attention from `x` to `context` (to itself where none is given)."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Identity())

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (split_heads(t, self.heads) for t in (self.to_q(x), self.to_k(context), self.to_v(context)))
        return self.to_out(merge_heads(attention(q, k, v)))  # [B, N, C]


class GEGLU(nn.Module):
    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, inner * 2)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, dim * 4), nn.Identity(), nn.Linear(dim * 4, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class AttentionPool(nn.Module):
    """CLIP's attention pool, keeping every token: a map becomes h*w + 1 tokens, the mean token first.

    The positional embedding is stored for an n x n grid and resized for any other number of tokens
    (a grid of n*n tokens that is not square takes the table as it is, as the authors' code does).
    """

    def __init__(self, channels: int, grid: int):
        super().__init__()
        self.grid = grid
        self.positional_embedding = nn.Parameter(torch.randn(channels, grid * grid + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, channels * 3, 1)
        self.c_proj = nn.Conv1d(channels, channels, 1)

    def position(self, height: int, width: int) -> Tensor:
        table = self.positional_embedding
        if height * width == self.grid**2:
            return table
        grid = table[:, 1:].unflatten(1, (self.grid, self.grid))[None]
        grid = F.interpolate(grid.float(), (height, width), mode="bicubic", align_corners=False).to(table.dtype)
        return torch.cat([table[:, :1], grid[0].flatten(1)], dim=1)  # [C, h*w + 1]

    def forward(self, feature: Tensor) -> Tensor:
        tokens = feature.flatten(2)  # [B, C, h*w]
        tokens = torch.cat([tokens.mean(-1, keepdim=True), tokens], dim=-1)
        tokens = tokens + self.position(*feature.shape[-2:])
        q, k, v = (split_heads(t.transpose(1, 2), POOL_HEADS) for t in self.qkv_proj(tokens).chunk(3, dim=1))
        pooled = merge_heads(attention(q, k, v)).transpose(1, 2)
        return self.c_proj(pooled).transpose(1, 2)  # [B, h*w + 1, C]


class TransformerBlock(nn.Module):
    """Self-attention, text cross-attention, optional feature cross-attention, feed-forward; each residual."""

    def __init__(self, dim: int, context_dim: int, heads: int, takes_feature: bool):
        super().__init__()
        self.attn1 = CrossAttention(dim, dim, heads)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        if takes_feature:
            self.attn3 = CrossAttention(dim, dim, heads)
            self.norm_sd = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor, feature_tokens: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        if feature_tokens is not None:
            x = x + self.attn3(self.norm_sd(x), feature_tokens)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a map. `pool_grid` > 0 makes the first of them read a feature map as
    well: the paper's UNet has one block here, and in SDXL nine more readings of each map would add 295 M weights."""

    def __init__(self, dim: int, context_dim: int, heads: int, depth: int, use_linear: bool, pool_grid: int = 0):
        super().__init__()
        self.use_linear = use_linear
        self.norm = nn.GroupNorm(32, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, dim) if use_linear else nn.Conv2d(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(dim, context_dim, heads, takes_feature=pool_grid > 0 and i == 0) for i in range(depth)
        )
        self.proj_out = nn.Linear(dim, dim) if use_linear else nn.Conv2d(dim, dim, 1)
        if pool_grid:
            self.attentionpool2D = AttentionPool(dim, pool_grid)

    def forward(self, x: Tensor, context: Tensor, feature: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        tokens = None if feature is None else self.attentionpool2D(feature)
        h = self.norm(x)
        if not self.use_linear:
            h = self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)  # [B, C, h, w] -> [B, h*w, C]
        if self.use_linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context, tokens)
            tokens = None
        if self.use_linear:
            h = self.proj_out(h)
        h = h.transpose(1, 2).unflatten(2, (height, width))
        if not self.use_linear:
            h = self.proj_out(h)
        return x + h


class ResBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_dim, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels), nn.SiLU(), nn.Identity(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = in_channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(embedding)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
