from ldznet_core.evaluation.markdown import markdown
from ldznet_core.evaluation.metrics import Scores
from ldznet_core.evaluation.native import NativeScores
from ldznet_core.evaluation.published import PUBLISHED, TABLES, rows_of
from ldznet_core.evaluation.tables import Result, Row

NATIVE = NativeScores(0.5, 0.25, 1.0, 0.5, 0.0, None, None, None)


def row(miou: float, **changes) -> Row:
    return Row("set", "ours", "phrase", (Result(Scores(miou, 0.5, 0.25, 0.5, 1.0, 7), native=NATIVE),), **changes)


def test_rows_are_lines_in_percent_with_the_columns_that_are_filled():
    (head, rule, line) = markdown([row(0.6).as_dict()])
    assert head == (
        "| set | method | features under | mIoU | IoU_FG | AP | IoU at 0.5 | native mIoU | native cIoU "
        "| Pr@0.5 | Pr@0.7 | Pr@0.9 | phrases | seeds |"
    )
    assert rule.count("---") == 14
    assert line == "| set | ours | phrase | 60.0 | 50.0 | 25.0 | 100.0 | 50.0 | 25.0 | 100.0 | 50.0 | 0.0 | 7 | 1 |"


def test_seeds_have_a_spread_and_refined_masks_a_line():
    results = tuple(Result(Scores(value, 0.5, 0.25, 0.5, 1.0, 7), 0.125) for value in (0.5, 0.7))
    line = markdown([Row("set", "ours", "phrase", results, refined=True).as_dict()])[2]
    assert line == "| set | ours, refined | phrase | 60.0 ± 14.1 | 50.0 | 25.0 | 100.0 | 12.5 | 7 | 2 |"


def test_published_rows_fill_what_was_published():
    lines = markdown([row.as_dict() for row in rows_of("aigi")])
    assert lines[0] == "| set | method | features under | mIoU | AP | phrases | seeds |"
    assert lines[-1] == "| AIGI | LD-ZNet (published) | - | 74.1 | 89.6 | - | - |"
    lines = markdown([row.as_dict() for row in rows_of("refcoco+")])
    assert lines[0] == "| set | method | features under | AP | IoU (kind not said) | phrases | seeds |"
    assert lines[-1] == "| RefCOCO+ | LD-ZNet (published) | - | 18.6 | 42.5 | - | - |"


def test_published_rows_belong_to_a_table():
    assert {row.dataset for row in PUBLISHED} == {*TABLES.values()}
    assert [len(rows_of(name)) for name in TABLES] == [10, 6, 4, 4, 4]
    assert not rows_of(None)
