"""Diffusion transformers of every family that is read, tiny and random, in ComfyUI's own classes, with a CLIP for each
whose tokens lie in its context as the real one's do."""

import re
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from seeded import seeded

WIDTH = 48  # of a row of context


@dataclass(frozen=True)
class Clip:
    """How a family's CLIP lays tokens out. `keys` are its encoders and the fewest tokens of each. Of the encoder that
    the context comes from `start` tokens stand before the words; of those `cut` have no row. `clip` says that the 77
    rows of CLIP come before it. Of `missing` encoders there are tokens only."""

    keys: dict[str, int]
    start: int = 0
    cut: int = 0
    clip: bool = False
    width: int = WIDTH
    pooled: int = 0
    extra: dict = field(default_factory=dict)
    missing: tuple[str, ...] = ()


FLUX = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 32, "context_in_dim": WIDTH,
    "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 4, "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
COSMOS = {
    "max_img_h": 64, "max_img_w": 64, "max_frames": 4, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 64, "num_blocks": 4, "num_heads": 2, "crossattn_emb_channels": WIDTH,
    "pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 16, "mlp_ratio": 2.0,
}  # fmt: skip
NEXT = {
    "patch_size": 2, "in_channels": 16, "dim": 96, "cap_feat_dim": WIDTH, "n_layers": 5, "n_refiner_layers": 1,
    "qk_norm": True, "n_heads": 4, "n_kv_heads": 2, "axes_dims": [8, 8, 8], "axes_lens": [64, 64, 64],
    "ffn_dim_multiplier": 1.0, "multiple_of": 16,
}  # fmt: skip
# Each is ComfyUI's name of the family, the sizes of its network and its CLIP.
FAMILIES = {
    "flux": ("Flux", {"image_model": "flux", **FLUX}, Clip({"l": 77, "t5xxl": 256}, pooled=32)),
    "flux2": (
        "Flux2",
        {
            "image_model": "flux2", **FLUX, "in_channels": 128, "out_channels": 128, "patch_size": 1,
            "vec_in_dim": None, "axes_dim": [8, 8, 8, 8], "theta": 2000, "global_modulation": True,
            "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False, "txt_ids_dims": [3], "depth": 2,
            "depth_single_blocks": 3, "guidance_embed": False,
        },
        Clip({"mistral3_24b": 1}, start=3),
    ),
    "chroma": (
        "Chroma",
        {
            "image_model": "chroma", **FLUX, "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 64,
            "hidden_dim": 64, "n_layers": 1, "guidance_embed": False,
        },
        Clip({"t5xxl": 1}, pooled=32),
    ),
    "sd3": (
        "SD3",
        {
            "in_channels": 16, "out_channels": 16, "pos_embed_scaling_factor": None, "patch_size": 2, "depth": 5,
            "input_size": None, "adm_in_channels": 32, "pos_embed_max_size": 32, "num_patches": 1024,
            "context_embedder_config": {
                "target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": 320},
            },
            "qk_norm": "rms", "x_block_self_attn_layers": [0, 1],
        },
        Clip({"l": 77, "g": 77, "t5xxl": 77}, clip=True, pooled=32),
    ),
    "qwen": (
        "QwenImage",
        {
            "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 4,
            "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": WIDTH,
            "axes_dims_rope": (8, 12, 12),
        },
        Clip({"qwen25_7b": 1}, start=7, cut=5),
    ),
    "lumina2": (
        "Lumina2", {"image_model": "lumina2", **NEXT}, Clip({"gemma2_2b": 1}, start=1, extra={"attention_mask": 1})
    ),
    "z-image": (
        "ZImage",
        {
            "image_model": "lumina2", **NEXT, "n_kv_heads": 4, "z_image_modulation": True, "pad_tokens_multiple": 32,
            "dim": 256, "axes_dims": [16, 24, 24], "n_layers": 3,  # its modulation is never narrower
        },
        Clip({"qwen3_4b": 1}, start=3, extra={"attention_mask": 1}),
    ),
    "hidream": (
        "HiDream",
        {
            "image_model": "hidream", "attention_head_dim": 32, "axes_dims_rope": [16, 8, 8],
            "caption_channels": [WIDTH, WIDTH], "max_resolution": [32, 32], "in_channels": 16, "out_channels": 16,
            "llama_layers": [0, 1, 2, 2], "num_attention_heads": 2, "num_routed_experts": 2,
            "num_activated_experts": 1, "num_layers": 2, "num_single_layers": 2, "patch_size": 2, "text_emb_dim": 32,
        },
        Clip({"l": 77, "g": 77, "t5xxl": 128, "llama": 128}, pooled=32, extra={"conditioning_llama3": 3}),
    ),
    "wan": (
        "WAN21_T2V",
        {
            "image_model": "wan2.1", "model_type": "t2v", "dim": 64, "ffn_dim": 128, "freq_dim": 32,
            "text_dim": WIDTH, "num_heads": 2, "num_layers": 4, "in_dim": 16, "out_dim": 16,
        },
        Clip({"umt5xxl": 512}),
    ),
    "anima": (
        "Anima", {"image_model": "anima", **COSMOS}, Clip({"qwen3_06b": 1, "t5xxl": 1}, extra={"t5xxl_ids": 1})
    ),
    "cosmos": ("CosmosT2IPredict2", {"image_model": "cosmos_predict2", **COSMOS}, Clip({"t5xxl": 512})),
}  # fmt: skip


class Adapter(torch.nn.Module):
    """Makes a context of T5's tokens, as Anima's large one does."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.empty(8192, WIDTH))

    def forward(self, context: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.table[ids] + context[:, : ids.shape[1]]


def tiny(name: str):
    """MODEL and CLIP of a family; None where the engine does not know the family."""
    from comfy import supported_models
    from comfy.ldm.flux.model import FluxParams
    from comfy.model_patcher import ModelPatcher

    family, sizes, layout = FAMILIES[name]
    if not hasattr(supported_models, family):
        return None
    if family in ("Flux", "Flux2"):
        sizes = {k: v for k, v in sizes.items() if k == "image_model" or k in FluxParams.__dataclass_fields__}
    if family == "Chroma":
        from comfy.ldm.chroma.model import ChromaParams

        sizes = {k: v for k, v in sizes.items() if k == "image_model" or k in ChromaParams.__dataclass_fields__}
    config = getattr(supported_models, family)(dict(sizes))
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, "", device="cpu").eval().requires_grad_(False)
    if hasattr(base.diffusion_model, "llm_adapter"):  # it is never small
        base.diffusion_model.llm_adapter = Adapter()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in base.diffusion_model.named_parameters():  # ComfyUI leaves them as memory was
        if parameter.ndim > 1:
            values = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
        else:
            values = torch.full(parameter.shape, float(not name.endswith("bias")))
        parameter.data = values
    for buffer_name, buffer in base.diffusion_model.named_buffers():
        if buffer.is_floating_point() and buffer_name.endswith("pos_embed"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    cpu = torch.device("cpu")
    return ModelPatcher(base, load_device=cpu, offload_device=cpu), clip(layout)


def clip(layout: Clip) -> SimpleNamespace:
    """A CLIP that writes texts of no model, always the same; a word is a token, and so is a comma or a full stop."""

    def tokenize(text: str) -> dict:
        words = [100 + sum(map(ord, word)) for word in re.findall(r"\w+|[^\w\s]", text)]
        found = {}
        for key, least in layout.keys.items():
            start = 1 if key in ("l", "g") else layout.start
            ids = [*range(1, 1 + start), *words, 99]
            found[key] = [[(token, 1.0) for token in ids + [0] * (least - len(ids))]]
        return found

    def encode(tokens: dict) -> list:
        sizes = {key: len(chunks[0]) for key, chunks in tokens.items()}
        main = next((key for key in sizes if key not in ("l", "g", *layout.missing)), "l")
        rows = sizes[main] - layout.cut + (77 if layout.clip and main != "l" else 0)
        name = str(tokens[main])
        extra = {}
        if layout.pooled:
            extra["pooled_output"] = seeded(f"pooled {name}", (1, layout.pooled), 0)
        if "attention_mask" in layout.extra:
            extra["attention_mask"] = torch.ones(1, rows, dtype=torch.long)
        if "t5xxl_ids" in layout.extra:
            ids = [token for token, _ in tokens["t5xxl"][0]]
            extra |= {"t5xxl_ids": torch.tensor(ids), "t5xxl_weights": torch.ones(len(ids))}
        if "conditioning_llama3" in layout.extra:
            layers = layout.extra["conditioning_llama3"]
            extra["conditioning_llama3"] = seeded(f"llama {name}", (1, layers, sizes["llama"], layout.width), 0)
        return [[seeded(f"context {name}", (1, rows, layout.width), 0), extra]]

    made = SimpleNamespace(clip_layer=lambda layer: None, tokenize=tokenize, encode_from_tokens_scheduled=encode)
    made.clone, made.cond_stage_model = lambda: made, SimpleNamespace(**dict.fromkeys(layout.missing))
    return made


def latent(model, rows: int = 10, columns: int = 14, batch: int = 1) -> torch.Tensor:
    """LATENT samples for a MODEL, always the same."""
    from_format = model.model.latent_format
    frames = (1,) if getattr(from_format, "latent_dimensions", 2) == 3 else ()
    shape = (batch, from_format.latent_channels, *frames, rows, columns)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))
