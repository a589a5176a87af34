"""Rivals load and answer; here they are tiny and random, and say so."""

import json

import numpy as np
import pytest
import torch

from ldznet_core import InputError
from ldznet_core.data.base import Example
from ldznet_core.evaluation import rivals
from ldznet_core.evaluation.batches import Batch
from ldznet_core.evaluation.rivals import load_rival

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", "cat", "red", "apple"]


def clip_tokenizer(folder) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)
    tokenizer.save_pretrained(folder)


def text_sizes() -> dict:
    return {
        "vocab_size": 54, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 32, "projection_dim": 16, "bos_token_id": 52, "eos_token_id": 53,
    }  # fmt: skip


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clipseg")
    clip_tokenizer(folder)
    config = transformers.CLIPSegConfig(
        text_config=text_sizes(),
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 16, "projection_dim": 16,
        },
        projection_dim=16, extract_layers=[0, 1], reduce_dim=8, decoder_num_attention_heads=2,
        decoder_intermediate_size=16, random_weights=True,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.CLIPSegForImageSegmentation(config).save_pretrained(folder)
    images = transformers.ViTImageProcessor(size={"height": 64, "width": 64})
    transformers.CLIPSegProcessor(images, transformers.CLIPTokenizer.from_pretrained(folder)).save_pretrained(folder)
    return folder


def asked(*phrases: str, size: tuple[int, int] = (40, 70)) -> Batch:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    picture = [Example(phrase, np.ones(size, bool), image) for phrase in phrases]
    return Batch([picture], [picture])


def test_clipseg_answers_each_phrase(clipseg):
    method = load_rival(f"clipseg={clipseg}")
    assert method.name == "clipseg (random weights)"
    predict = method.predictors[0]
    both, cat = predict(None, asked("cat", "a red apple " * 9)), predict(None, asked("cat"))
    assert len(both.masks) == 2 and both.presence is None
    assert torch.allclose(both.masks[0], cat.masks[0], atol=1e-5)
    assert not torch.allclose(both.masks[0], both.masks[1])


@pytest.mark.parametrize("change", ["drop", "keep"])
def test_weights_that_a_file_lacks_are_random(clipseg, tmp_path, change):
    network = transformers.CLIPSegForImageSegmentation.from_pretrained(clipseg)
    network.config.random_weights = False
    weights = network.state_dict()
    if change == "drop":
        weights = {name: value for name, value in weights.items() if "decoder.reduces" not in name}
    network.save_pretrained(tmp_path, state_dict=weights)
    transformers.CLIPSegProcessor.from_pretrained(clipseg).save_pretrained(tmp_path)
    assert ("random" in load_rival(f"clipseg={tmp_path}").name) == (change == "drop")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"), model_max_length=64)
    backbone = transformers.SwinConfig(
        image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], window_size=2,
        out_indices=[2, 3, 4],
    )  # fmt: skip
    text = {
        "model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone, text_config=text, num_queries=5, encoder_layers=1, decoder_layers=2, d_model=32,
        encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, max_text_len=16,
        random_weights=True,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 192})
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam")
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 16, "window_size": 2, "global_attn_indexes": [0], "mlp_dim": 16,
            "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "iou_head_hidden_dim": 16, "iou_head_depth": 2,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.SamModel(config).save_pretrained(folder)
    images = transformers.SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64},
        mask_size={"longest_edge": 16}, mask_pad_size={"height": 16, "width": 16},
    )  # fmt: skip
    transformers.SamProcessor(images).save_pretrained(folder)
    return folder


def test_grounding_dino_and_sam_cut_out_the_boxes_of_a_phrase(detector, segmenter, monkeypatch):
    method = load_rival(f"grounding-dino+sam={detector},{segmenter}")
    assert method.name == "grounding-dino+sam (random weights)"
    predict = method.predictors[0]
    monkeypatch.setattr(rivals, "DETECTED", 0.0)  # every box counts
    answers = predict(None, asked("cat", "red apple"))
    assert [mask.shape for mask in answers.masks] == [(40, 70)] * 2
    assert all(0 < mask.max() <= 1 for mask in answers.masks) and (answers.presence > 0).all()
    monkeypatch.setattr(rivals, "DETECTED", 1.0)  # none does
    answers = predict(None, asked("cat"))
    assert not answers.masks[0].any() and answers.present == [False]


@pytest.fixture(scope="module")
def sam3(tmp_path_factory):
    if not hasattr(transformers, "Sam3Model"):
        pytest.skip("this transformers has no SAM 3")
    folder = tmp_path_factory.mktemp("sam3")
    clip_tokenizer(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_layers": 1}
    config = transformers.Sam3Config(
        vision_config={
            "backbone_config": {
                "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 56, "patch_size": 14, "window_size": 2, "global_attn_indexes": [0],
                "pretrain_image_size": 56, "model_type": "sam3_vit_model",
            },
            "fpn_hidden_size": 16, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config=text_sizes(), geometry_encoder_config=sizes, detr_encoder_config=sizes,
        detr_decoder_config={**sizes, "num_queries": 5},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2}, random_weights=True,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Sam3Model(config).save_pretrained(folder)
    return folder


def test_sam3_answers_each_phrase(sam3, monkeypatch):
    method = load_rival(f"sam3={sam3}")
    assert method.name == "sam3 (random weights)"
    monkeypatch.setattr(rivals, "DETECTED", 0.0)
    answers = method.predictors[0](None, asked("cat", "apple"))
    assert len(answers.masks) == 2 and all(0 < mask.max() <= 1 for mask in answers.masks)
    assert answers.presence.shape == (2,)


def test_what_cannot_be_loaded_is_said_with_what_to_do(tmp_path):
    with pytest.raises(InputError, match="no rival 'florence': choose among clipseg"):
        load_rival("florence")
    with pytest.raises(InputError, match="has 2 models: write grounding-dino"):
        load_rival("grounding-dino+sam=one")
    with pytest.raises(InputError, match=r"not on this machine.*'hf download no/such-model'.*--rival clipseg=FOLDER"):
        load_rival("clipseg=no/such-model")
    with pytest.raises(InputError, match=f"the folder {tmp_path} holds no CLIPSegProcessor that can be read"):
        load_rival(f"clipseg={tmp_path}")
    with pytest.raises(InputError, match="cannot run clipseg.*pip install --upgrade transformers"):
        rivals.Loader("clipseg", "model")("NoSuchModel")
