"""What attention masks are computed from, on the real engine: our queries, keys and attention are its layers'."""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("as_comfyui_runs_nodes")


def noting(mini, chosen):
    """A clone of MODEL that computes as ever and notes what its attention is handed: {(kind, layer): [...]}."""
    from comfy.ldm.modules.attention import optimized_attention

    clone, notes = mini.model.clone(), {}
    sampling = mini.model.get_model_object("model_sampling")

    def note(name):
        def attend(q, k, v, options):
            timestep = int(sampling.timestep(options["sigmas"][:1].float())[0])
            handed = SimpleNamespace(q=q.clone(), k=k.clone(), v=v.clone(), heads=options["n_heads"], t=timestep)
            notes.setdefault(name, []).append(handed)
            return optimized_attention(q, k, v, options["n_heads"])

        return attend

    for kind, layers in (("attn2", chosen.layers), ("attn1", [chosen.own])):
        for layer in layers:
            place, number = layer.block.split("_blocks.")
            getattr(clone, f"set_model_{kind}_replace")(note((kind, layer)), place, int(number), layer.index)
    return clone, notes


@pytest.fixture
def chosen(core, mini):
    """The layers that are listened to in a drawing of the miniature."""
    return core("backbones.families.unet").plan(core("backbones.comfy_model").read_unet_config(mini.model), 16, 16)


@pytest.mark.parametrize("kind", ["attn2", "attn1"])
def test_recomputed_attention_is_that_of_the_engines_layers(core, mini, chosen, kind):
    maths = core("segment.attention_maps")

    def ours(q, k, heads):
        if kind == "attn1":
            return maths.self_attention(q, k, heads)
        return maths.cross_attention(q[None], k[None], heads)[0, 0]

    layers = chosen.layers if kind == "attn2" else (chosen.own,)
    model, notes = noting(mini, chosen)
    find, put_out = core("backbones.comfy").transformer, {}
    for layer in layers:
        last = layer.attention(lambda block: find(mini.unet, block), kind).to_out
        put_out[layer] = SimpleNamespace(module=last, outputs=[])
    handles = [
        one.module.register_forward_hook(lambda module, given, out, one=one: one.outputs.append(out.clone()))
        for one in put_out.values()
    ]
    mini.sample(model, steps=1)
    for handle in handles:
        handle.remove()
    for layer in layers:
        handed, theirs = notes[kind, layer][0], put_out[layer]
        parts = zip(*(x[0].chunk(handed.heads, dim=-1) for x in (handed.q, handed.k, handed.v)), strict=True)
        plain, heads = [], []
        for q, k, v in parts:
            plain.append((q @ k.T / q.shape[-1] ** 0.5).softmax(-1))
            heads.append(ours(q, k, 1) @ v)
        mean = torch.stack(plain).mean(0)
        assert torch.allclose(ours(handed.q[0], handed.k[0], handed.heads), mean, atol=1e-5)
        whole = theirs.module(torch.cat(heads, dim=-1)[None])
        assert torch.allclose(whole, theirs.outputs[0][:1], atol=1e-5 * float(whole.abs().max()))


def test_queries_are_those_that_the_engine_hands_to_its_attention(core, pack_nodes, mini, chosen):
    noted, notes = noting(mini, chosen)
    model, capture = pack_nodes["LDZNetCapture"].execute(noted).args
    latent = mini.sample(model, steps=12)
    outputs = capture.queries(latent["samples"])
    for layer, mean in zip(chosen.layers, outputs.cross, strict=True):
        steps = [one.q.chunk(2)[1] for one in notes["attn2", layer] if one.t <= core("backbones.step_recorder").SETTLED]
        assert 3 < len(steps) < 12  # ComfyUI puts the negative prompt first
        assert torch.allclose(mean, torch.stack(steps).mean(0), atol=1e-5)
    last = notes["attn1", chosen.own][-1]
    assert torch.equal(outputs.own[0], last.q.chunk(2)[1]) and torch.equal(outputs.own[1], last.k.chunk(2)[1])


def test_keys_of_a_text_are_those_that_the_engine_makes_of_it(core, mini, chosen):
    model, notes = noting(mini, chosen)
    mini.sample(model, steps=1, positive=mini.prompt("a red apple"))
    backbone = core("backbones.comfy").ComfyBackbone(mini.model, mini.clip)
    made = backbone.project(backbone.embed(["a red apple"]).context, chosen.keys(backbone.transformer))
    for layer, keys in zip(chosen.layers, made, strict=True):
        assert torch.allclose(notes["attn2", layer][0].k.chunk(2)[1], keys, atol=1e-5)
