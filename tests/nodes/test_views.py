"""What the page is told for its panel: files of a picture and of a sheet with the soft masks of its phrases."""

import importlib

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def views(pack, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.folder_paths, "get_temp_directory", lambda: str(tmp_path / "temp"))
    return importlib.import_module(f"{pack.__name__}.nodes.views")


def opened(file: dict, tmp_path) -> np.ndarray:
    assert file["type"] == "temp" and file["subfolder"] == ""
    return np.asarray(Image.open(tmp_path / "temp" / file["filename"]))


def test_a_sheet_holds_the_soft_masks_row_by_row(views, tmp_path):
    masks = torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0]).reshape(1, 5, 1, 1).expand(1, 5, 2, 3)
    (view,) = views.views_of(None, masks, ["a", "b", "c", "d", "e"])
    assert (view["phrases"], view["size"], view["columns"]) == (["a", "b", "c", "d", "e"], [3, 2], 3)
    assert view["image"] is None and view["colours"][:2] == ["#56b4e9", "#e69f00"]
    sheet = opened(view["masks"], tmp_path)
    assert sheet.shape == (4, 9)
    assert sheet[::2, ::3].tolist() == [[0, 51, 102], [153, 255, 0]]


def test_large_pictures_and_masks_are_sent_small(views, tmp_path):
    (view,) = views.views_of(torch.rand(1, 600, 2048, 3), torch.ones(1, 1, 600, 2048), ["sky"])
    assert view["size"] == [512, 150] and opened(view["masks"], tmp_path).shape == (150, 512)
    assert opened(view["image"], tmp_path).shape == (300, 1024, 3)


def test_of_a_long_batch_the_first_images_are_shown(views):
    assert len(views.views_of(None, torch.zeros(20, 1, 8, 8), ["cat"])) == 16
    assert views.views_of(None, torch.zeros(0, 1, 8, 8), ["cat"]) == []
