"""What words cost on Flux.1 of full size at 1024 px: `python benchmarks/words_on_flux.py [SIDE]`.

Counts operations and live bytes on tensors without values, so no weights and little memory are needed, but a ComfyUI
engine is. One pass over the picture and one over pure noise, each cut short after the last block that is read, against
one step of sampling (Flux-dev takes one forward a step) and against 20. Writes benchmarks/results/transformers.json.
"""

import sys
import weakref

import engine
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from writing import write_result

STEPS = 20
FLUX = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768, "context_in_dim": 4096,
    "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19, "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
TOKENS = 256  # of a prompt, to which T5's tokenizer fills up


def plain(func, q, k, v, heads, *args, **kwargs):
    """Attention that runs on tensors without values and makes nothing of the size of all pairs, as on a GPU; ComfyUI's
    own asks the device for its free memory."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0].transpose(1, 2).flatten(2)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, while they live, and their `peak`; those of `network` were
    there before."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.now, self.peak = 0, 0
        self.known = {p.untyped_storage()._cdata for p in network.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def main(side: int) -> None:
    engine.start()
    import comfy.ops
    from comfy.ldm.flux.model import Flux, FluxParams

    from ldznet_core.backbones.comfy_dit import OVERRIDE, AttentionReader
    from ldznet_core.backbones.families.dit import family_of
    from ldznet_core.backbones.joint import Concepts, Layout
    from ldznet_core.backbones.recording import follow
    from ldznet_core.segment.attention import NOISE_GRID, NOISES
    from ldznet_core.segment.joint_attention import BACKGROUND

    sizes = {name: value for name, value in FLUX.items() if name in FluxParams.__dataclass_fields__}
    network = Flux(**sizes, device="meta", dtype=torch.bfloat16, operations=comfy.ops.disable_weight_init)
    family = family_of(network)
    chosen = family.chosen(network)

    @torch.no_grad()
    def run(batch: int, rows: int, override, ends: bool, tokens: int = TOKENS) -> tuple[float, int]:
        """Operations and most live bytes of a pass over latents of `rows` x `rows` and a context of `tokens`, which may
        end after the last block that is read."""

        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(batch, *shape, device="meta", dtype=torch.bfloat16)

        given = empty(16, rows, rows), empty(), empty(tokens, 4096), empty(768), empty()
        modules = family.modules(network, chosen) if ends else {"never": torch.nn.Identity()}
        with FlopCounterMode(display=False) as count, LiveBytes(network) as live, follow(modules) as override.running:
            network(*given, transformer_options={OVERRIDE: override})
        return count.get_total_flops(), live.peak

    def read(phrases: int, batch: int, rows: int, caption: int = 0) -> tuple[float, int]:
        """Operations and most live bytes of a pass that reads phrases, beside a caption of so many tokens."""
        names = phrases + len(BACKGROUND) + 1
        tokens, length = (rows // 2) ** 2, caption + TOKENS
        concepts = Concepts(None, tuple((caption + 2 * i,) for i in range(names)), length, caption)
        reader = AttentionReader(Layout(family.order, family.left_padded, tokens, tokens, concepts), plain)
        return run(batch, rows, reader, ends=True, tokens=length)

    latent = side // 8
    step, drawing = run(1, latent, plain, ends=False)
    (one, _), (eight, reading) = read(1, 1, latent), read(8, 1, latent)
    noise, _ = read(8, NOISES, NOISE_GRID)
    riding, _ = read(8, 1, latent, caption=TOKENS)
    measured = {
        "passes over the picture and over pure noise, share of one step": (
            f"{eight / step:.3f} (blocks {', '.join(map(str, chosen))}) and {noise / step:.3f}"
        ),
        f"both, share of {STEPS} steps": f"{(eight + noise) / step / STEPS:.4f}",
        "8 phrases over 1, and beside a caption over without": f"{eight / one:.3f} and {riding / eight:.3f}",
        "most live bytes of the pass beyond those of a step, weights apart": (
            f"{(reading - drawing) / 1e6:.0f} MB beyond {drawing / 1e6:.0f} MB in 16 bits"
        ),
    }
    facts = {f"words on Flux.1, {side} px, {k}": {"measured": v} for k, v in measured.items()}
    write_result("transformers", f"words_on_flux.py {side}", facts=facts, **{"one step, TFLOP": round(step / 1e12, 1)})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)
