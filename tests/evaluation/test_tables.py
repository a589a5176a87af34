"""What a table tells: scores, what is marked for absent phrases, mean and spread over seeds, published rows."""

import tracemalloc

import numpy as np
import pytest
import torch

from ldznet_core import InputError
from ldznet_core.data.base import Example
from ldznet_core.data.damage import Damage
from ldznet_core.evaluation import batches as batches_module
from ldznet_core.evaluation.batches import Batch
from ldznet_core.evaluation.predictors import Answers, Method, everything
from ldznet_core.evaluation.tables import Evaluation, Result, Row, Tally, score, score_all, table


def example(phrase: str, columns: list[int], ignore: list[int] | None = None, picture: str = "0") -> Example:
    """A picture of 4x4 pixels in which these columns are true."""
    mask, ignored = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    mask[:, columns] = True
    if ignore:
        ignored[:, ignore] = True
    return Example(phrase, mask, latent=torch.zeros(4, 1, 1), ignore=ignored if ignore else None, picture=picture)


def judged(masks: torch.Tensor, presence: torch.Tensor | None, *examples: Example) -> Result:
    tally = Tally()
    tally.add(Batch([list(examples)], [list(examples)]), Answers(masks, presence))
    return tally.result()


# ---- results ----


@pytest.mark.parametrize("presence", [torch.tensor([0.0, 1.9, 2.1]), None])
def test_what_is_marked_for_absent_phrases_is_told_with_and_without_the_gate(presence):
    masks = torch.zeros(3, 4, 4)
    masks[0, :, 0] = masks[1, :2] = masks[2, 0] = 1  # found exactly; half and a quarter of the picture marked
    result = judged(masks, presence, example("cat", [0]), example("bus", []), example("dog", []))
    assert result.false_area == pytest.approx(3 / 8)
    assert result.gated_area == (None if presence is None else pytest.approx(1 / 8))
    assert result.scores.miou == pytest.approx(4 / 5) and result.scores.samples == 1  # no gate on what is there


def test_where_nothing_is_absent_no_area_is_told():
    result = judged(torch.ones(1, 4, 4), torch.ones(1), example("cat", [0]))
    assert result.false_area is None and result.gated_area is None
    row = Row("set", "method", "", (result,)).as_dict()
    assert row["false_area"] is None and row["miou"] == {"mean": pytest.approx(4 / 17), "std": 0.0}


def test_presence_is_judged_by_pairs_of_present_and_absent():
    masks = torch.zeros(4, 4, 4)
    phrases = example("cat", [0]), example("dog", [1]), example("bus", []), example("car", [])
    assert judged(masks, torch.tensor([3.0, 1.0, 2.0, 1.0]), *phrases).presence_auc == pytest.approx(2.5 / 4)
    assert judged(masks, None, *phrases).presence_auc is None
    assert judged(masks[:2], torch.tensor([3.0, 1.0]), *phrases[:2]).presence_auc is None


def test_ignored_pixels_are_not_scored():
    masks = torch.ones(2, 4, 4)
    result = judged(masks, None, example("cat", [0, 1], ignore=[1, 2, 3]), example("bus", [], ignore=[0, 1, 2]))
    assert result.scores.iou_at_default == 1
    assert result.false_area == pytest.approx(1 / 4)


def test_a_data_set_that_names_nothing_has_no_scores():
    with pytest.raises(InputError, match="no sample"):
        judged(torch.ones(1, 4, 4), None, example("bus", []))


def test_marking_everything_scores_what_the_others_leave():
    (baseline,) = score(None, everything, [example("cat", [0]), example("bus", [1, 2, 3]), example("dog", [])])
    assert baseline.scores.miou == pytest.approx((4 / 17 + 12 / 17) / 2)  # the protocol's +1 in each denominator
    assert baseline.false_area == 1
    (apart,) = score(None, everything, [example("cat", [0]), example("bus", [1, 2, 3], picture="1")])
    assert apart.scores.miou == pytest.approx((4 / 5 + 12 / 13) / 2)


def test_masks_are_brought_to_the_grid_of_the_paper_and_to_the_size_of_the_picture():
    """A picture of 2 x 6 is worked on at 4 x 4; its left half is true."""
    small, large = np.zeros((4, 4), bool), np.zeros((2, 6), bool)
    small[:, :2] = large[:, :3] = True
    working, original = (Example("cat", mask, latent=torch.zeros(4, 1, 1)) for mask in (small, large))
    for mask in (torch.from_numpy(small), torch.from_numpy(large)):
        tally = Tally()
        tally.add(Batch([[working]], [[original]]), Answers([mask.float()]))
        assert tally.result().scores.iou_at_default == 1
        assert tally.result().native.native_miou == 1


def test_phrases_that_do_not_count_as_present_are_empty_at_native_size_only():
    result = judged(torch.ones(1, 4, 4), torch.zeros(1), example("cat", [0, 1]))
    assert result.scores.iou_at_default == 1 / 2
    assert result.native.native_miou == 0


# ---- tables ----


def everywhere(backbone, batch: Batch) -> Answers:
    return Answers(torch.ones(len(batch.examples), 4, 4))


def nowhere(backbone, batch: Batch) -> Answers:
    return Answers(torch.zeros(len(batch.examples), 4, 4))


def failing(error: Exception):
    def predict(backbone, batch: Batch) -> Answers:
        raise error

    return predict


DATASET = [example("cat", [0, 1]), example("bus", [])]


def test_rows_tell_mean_and_spread_over_seeds_and_published_scores_follow():
    method = Method("ours", "", (everywhere, nowhere))
    rows = [row.as_dict() for row in table(None, [method], "PhraseCut", DATASET, published="phrasecut")]
    baseline, ours, *published = rows
    assert baseline["method"] == "mark everything"
    assert ours["iou_at_default"] == {"mean": 0.25, "std": pytest.approx(0.5 / 2**0.5)} and ours["seeds"] == 2
    assert ours["false_area"]["mean"] == 0.5
    assert ours["giou"]["mean"] == pytest.approx((3 / 4 + 1 / 2) / 2)  # 16 marked pixels count as empty
    assert [row["method"] for row in published][-3:] == [
        "LD-ZNet (published)", "MDETR (published)", "GLIPv2-T (published)",
    ]
    assert len(list(table(None, [method], "another set", DATASET))) == 2


def test_a_method_that_fails_does_not_end_the_others(caplog):
    ours, theirs, memory = InputError("not on this model"), ValueError("a shape"), MemoryError()
    methods = [
        Method("wrong", "", (nowhere, failing(ours))), Method("right", "", (everywhere,)),
        Method("large", "", (failing(memory),)), Method("broken", "", (failing(theirs),)),
    ]  # fmt: skip
    rows, generator = [], table(None, methods, "set", DATASET)
    while True:
        try:
            rows.append(next(generator).method)
        except StopIteration as end:
            assert [type(error) for error in end.value] == [InputError, InputError, ValueError]
            break
    assert rows == ["mark everything", "right"]
    assert caplog.messages == [
        "wrong on set: not on this model",
        "large on set: pictures of 4x4 pixels do not fit into memory: choose a smaller --size",
        "broken on set: a fault of this program (ValueError: a shape); please report it",
    ]


def test_where_every_method_fails_the_first_error_is_raised():
    with pytest.raises(InputError, match="not on this model"):
        list(table(None, [Method("wrong", "", (failing(InputError("not on this model")),))], "set", DATASET))


def test_progress_tells_how_many_examples_are_done():
    told = []
    list(table(None, [], "set", DATASET, Evaluation(progress=lambda done, of: told.append((done, of)))))
    assert told == [(2, 2)]


class Synthetic:
    """Pictures of two phrases each, made when they are asked for."""

    def __init__(self, pictures: int):
        self.pictures = pictures

    def __len__(self) -> int:
        return 2 * self.pictures

    def __getitem__(self, index: int) -> Example:
        mask = np.zeros((96, 80), bool)
        mask[:, : 10 + index % 50] = True
        return Example(f"phrase {index}", mask, np.full((96, 80, 3), index % 256, np.uint8), picture=str(index // 2))


class Encoder:
    """A backbone whose latents are NumPy's memory, which tracemalloc sees."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.zeros((len(images), 4, 8, 8), np.float32))


def peak(pictures: int) -> int:
    """Bytes at the highest, while the methods are scored on so many pictures."""

    def predict(backbone, batch: Batch) -> Answers:
        assert len(batch.z) == len(batch.pictures)
        return Answers([torch.from_numpy(np.full((64, 64), 0.7, np.float32)) for _ in batch.examples])

    tracemalloc.start()
    try:
        how = Evaluation(size=lambda height, width: (64, 64), damage=Damage())
        score_all(Encoder(), [predict, predict, everything], Synthetic(pictures), how)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_data_set(monkeypatch):
    monkeypatch.setattr(batches_module, "PICTURES", 2)
    peak(2)  # what is loaded once
    assert peak(16 * 8) < 1.1 * peak(8)


def test_a_predictor_is_scored_with_and_without_refined_edges():
    mask = np.zeros((64, 64), bool)
    mask[:, :30] = True
    image = np.where(mask[..., None], np.uint8([250, 220, 40]), np.uint8([40, 90, 200]))
    soft = torch.linspace(1, 0, 64).expand(1, 64, 64)  # crosses 0.5 at column 32, the image's edge is at 30

    def predict(backbone, batch: Batch) -> Answers:
        return Answers(soft, reach=1 / 8)

    coarse, fine = score(None, predict, [Example("cat", mask, image, torch.zeros(4, 8, 8))], edges=True)
    assert coarse.scores.iou_at_default == pytest.approx(30 / 32)
    assert fine.scores.iou_at_default > 30 / 32
