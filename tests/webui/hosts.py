"""Real WebUIs, started on the CPU with the bundled miniature as their checkpoint.

A checkout is named by A1111_PATH, FORGE_PATH or NEO_PATH, its Python by A1111_PYTHON, FORGE_PYTHON or NEO_PYTHON.
"""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "ldznet_core" / "mini" / "weights"
KINDS = ("a1111", "neo", "forge")
PACK = ("ldznet_core", "ldznet_webui", "scripts", "javascript", "style.css", "metadata.ini", "install.py")
COMMON = "--skip-prepare-environment --skip-torch-cuda-test --skip-version-check --api --server-name 127.0.0.1".split()
FLAGS = {
    "a1111": "--use-cpu all --precision full --no-half --no-download-sd-model".split(),
    "neo": ["--cpu"],
    "forge": ["--always-cpu"],
}
TEXT_ENCODER = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": 96, "intermediate_size": 384,
    "num_attention_heads": 4, "num_hidden_layers": 0, "max_position_embeddings": 77, "vocab_size": 762,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 96, "bos_token_id": 760,
    "eos_token_id": 761, "pad_token_id": 761,
}  # fmt: skip
TOKENIZER = {
    "tokenizer_class": "CLIPTokenizer", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "model_max_length": 77, "do_lower_case": True,
}  # fmt: skip
# Forge tells checkpoints by their widths: one that knows those of the miniature as Stable Diffusion 1.5.
KNOW_THE_MINIATURE = """
from pathlib import Path
from huggingface_guess import model_list
known = model_list.SD15
known.unet_config = {**known.unet_config, "context_dim": 96, "model_channels": 64}
known.unet_extra_config = {"num_heads": 4, "num_head_channels": -1}
known.huggingface_repo = str(Path(__file__).parents[1] / "mini")
"""

# What tests ask of the inside of a running WebUI.
PROBE = """
import base64
from modules import script_callbacks
from ldznet_webui import host
from ldznet_webui.masks import Finder, Words

state = {"handle": None, "calls": 0}

def hooks(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())

def add_routes(demo, app):
    from fastapi import Body

    @app.post("/probe/soft")
    def soft(request: dict = Body(...)):
        from ldznet_webui.api import picture_of
        def work():
            words = Words.of(request["phrases"], method=request["method"], refine=False)
            with Finder(words.method) as finder:
                return finder.find(words, picture_of(request["image"])).prediction
        found = host.exclusive(work)
        raw = found.masks[0].float().contiguous()
        return {"shape": list(raw.shape), "masks": base64.b64encode(raw.numpy().tobytes()).decode()}

    @app.post("/probe/count")
    def count():
        def work():
            network = host.backbone().network
            before = hooks(network)
            def called(*args):
                state["calls"] += 1
            state["calls"], state["handle"] = 0, network.register_forward_pre_hook(called)
            return before
        return {"hooks": host.exclusive(work)}

    @app.post("/probe/counted")
    def counted():
        state["handle"].remove()
        return {"calls": state["calls"], "hooks": hooks(host.backbone().network)}

    @app.get("/probe/axes")
    def axes():
        from modules import scripts
        module = next(d.module for d in scripts.scripts_data if "xyz_grid" in d.script_class.__module__)
        shown = [option for option in module.axis_options if not getattr(option, "is_img2img", False)]
        return [option.label for option in shown]

script_callbacks.on_app_started(add_routes)
"""


def text_encoder() -> dict:
    """The config of the miniature's text encoder, its layers counted in the file."""
    from safetensors import safe_open

    with safe_open(WEIGHTS / "mini.safetensors", "pt") as file:
        layers = {name.split(".layers.")[1].split(".")[0] for name in file.keys() if ".layers." in name}
    return {**TEXT_ENCODER, "num_hidden_layers": len(layers)}


def write(folder: Path, files: dict[str, dict]) -> None:
    for name, values in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))


def ldm_config(clip: Path) -> dict:
    """What Stable Diffusion's own config file says, of the miniature. JSON is YAML."""
    unet = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "attention_resolutions": [4, 2, 1],
        "num_res_blocks": 2, "channel_mult": [1, 1, 2, 2], "num_heads": 4, "use_spatial_transformer": True,
        "transformer_depth": 1, "context_dim": 96, "use_checkpoint": False, "legacy": False,
    }  # fmt: skip
    vae = {
        "double_z": True, "z_channels": 4, "resolution": 128, "in_channels": 3, "out_ch": 3, "ch": 64,
        "ch_mult": [1, 1, 1, 1], "num_res_blocks": 0, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    params = {
        "parameterization": "v", "linear_start": 0.00085, "linear_end": 0.0120, "num_timesteps_cond": 1,
        "timesteps": 1000, "first_stage_key": "jpg", "cond_stage_key": "txt", "image_size": 16, "channels": 4,
        "conditioning_key": "crossattn", "monitor": "none", "scale_factor": 0.18215, "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {
                "embed_dim": 4, "monitor": "none", "ddconfig": vae, "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": {"version": str(clip)},
        },
    }  # fmt: skip
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def diffusers_configs() -> dict[str, dict]:
    """The miniature's configs in the layout of a diffusers folder."""
    wide, deep = [64, 64, 128, 128], [64, 64, 64, 64]
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "scheduler": ["diffusers", "PNDMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel", "attention_head_dim": 4, "block_out_channels": wide,
            "cross_attention_dim": 96, "layers_per_block": 2, "sample_size": 16, "in_channels": 4, "out_channels": 4,
            "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
            "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL", "block_out_channels": deep, "latent_channels": 4, "layers_per_block": 0,
            "sample_size": 128, "in_channels": 3, "out_channels": 3, "norm_num_groups": 32, "act_fn": "silu",
            "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_start": 0.00085, "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
            "prediction_type": "v_prediction", "clip_sample": False, "trained_betas": None,
        },
        "text_encoder/config.json": text_encoder(),
        "tokenizer/tokenizer_config.json": TOKENIZER,
    }  # fmt: skip


def make_data(kind: str, folder: Path, extension: bool = True, checkpoint: bool = True) -> Path:
    """A data folder with the miniature as the only checkpoint, if wanted, and with this extension, if wanted."""
    models = folder / "models" / "Stable-diffusion"
    models.mkdir(parents=True, exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    if checkpoint:
        shutil.copy(WEIGHTS / "mini.safetensors", models / "mini.safetensors")
    clip = folder / "clip"
    shutil.copytree(WEIGHTS / "tokenizer", clip, dirs_exist_ok=True)
    write(clip, {"config.json": text_encoder(), "tokenizer_config.json": TOKENIZER})
    write(models, {"mini.yaml": ldm_config(clip)})
    if extension:
        scripts = folder / "extensions" / "probe" / "scripts"
        scripts.mkdir(parents=True, exist_ok=True)
        (scripts / "probe.py").write_text(PROBE)
    if kind != "a1111":
        mini = folder / "extensions" / "know-the-miniature" / "mini"
        write(mini, diffusers_configs())
        shutil.copytree(WEIGHTS / "tokenizer", mini / "tokenizer", dirs_exist_ok=True)
        scripts = mini.parent / "scripts"
        scripts.mkdir(exist_ok=True)
        (scripts / "know_the_miniature.py").write_text(KNOW_THE_MINIATURE)
    if extension:
        target = folder / "extensions" / "ldznet-masks"
        target.mkdir(parents=True, exist_ok=True)
        for name in PACK:
            (target / name).unlink(missing_ok=True)
            (target / name).symlink_to(ROOT / name)
    return folder


@dataclass
class WebUI:
    """A running WebUI."""

    kind: str
    url: str
    process: subprocess.Popen
    log: Path

    def get(self, path: str):
        return self.ask(path, None)

    def post(self, path: str, **values):
        return self.ask(path, values)

    def ask(self, path: str, values: dict | None):
        data = None if values is None else json.dumps(values).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code} {error.read().decode()[:2000]}") from None

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def checkout(kind: str) -> Path | None:
    named = os.environ.get(f"{kind.upper()}_PATH")
    return Path(named) if named else None


def start(kind: str, data: Path, *flags: str, seconds: float = 600) -> WebUI:
    """The WebUI of that kind on a data folder, ready to answer. Raises RuntimeError with the end of its log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root, log = checkout(kind), data / "log.txt"
    python = os.environ.get(f"{kind.upper()}_PYTHON", "python")
    allowed = [] if kind == "a1111" else ["--gradio-allowed-path", str(root)]
    command = [python, "launch.py", *COMMON, *FLAGS[kind], *allowed, "--data-dir", str(data), "--port", str(port)]
    settings = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen([*command, *flags], cwd=root, stdout=out, stderr=out, env={**os.environ, **settings})
    webui = WebUI(kind, f"http://127.0.0.1:{port}", process, log)
    until = time.monotonic() + seconds
    # A request that comes while it still starts would end it. This line is written when all is there.
    while time.monotonic() < until and process.poll() is None:
        if "Startup time:" in log.read_text(errors="replace"):
            return webui
        time.sleep(1)
    process.kill()
    raise RuntimeError(f"{kind} did not start: {log.read_text(errors='replace')[-3000:]}")


@contextmanager
def running(kind: str, data: Path, *flags: str) -> Iterator[WebUI]:
    """Inside, a WebUI of that kind runs on a data folder."""
    webui = start(kind, data, *flags)
    try:
        yield webui
    finally:
        webui.stop()


def encoded(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text.split(",", 1)[-1])))
