"""The CLIP text model (Radford et al., 2021) with the state-dict names of SD checkpoints and transformers."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layers import attention, merge_heads, split_heads


@dataclass(frozen=True)
class TextConfig:
    """Sizes; the defaults are CLIP ViT-L/14's, the text encoder of SD 1.x."""

    vocabulary: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    positions: int = 77


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(proj(x), self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(merge_heads(attention(q, k, v, causal=True)))


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, width * 4), nn.Linear(width * 4, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h))  # CLIP's quick GELU


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextTransformer(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.embeddings = nn.ModuleDict({
            "token_embedding": nn.Embedding(config.vocabulary, config.width),
            "position_embedding": nn.Embedding(config.positions, config.width),
        })
        layers = nn.ModuleList(EncoderLayer(config.width, config.heads) for _ in range(config.layers))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.final_layer_norm = nn.LayerNorm(config.width)
        for embedding in self.embeddings.values():
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embeddings["token_embedding"](tokens) + self.embeddings["position_embedding"](positions)
        for layer in self.encoder["layers"]:
            x = layer(x)
        return self.final_layer_norm(x)


class ClipText(nn.Module):
    """Token ids [B, 77] -> context [B, 77, width]: the last hidden state after the final norm, no mask on padding."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.text_model(tokens)
