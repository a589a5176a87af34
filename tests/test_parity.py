"""Every method gives at every door what is on record, as far as machines agree (`parity.py --check` is exact)."""

import json

import doors
import parity
import pytest

TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def record():
    return json.loads(parity.RECORD.read_text())


@pytest.fixture(scope="module")
def comfy(pack_nodes):
    return doors.Comfy(pack_nodes)


def compare(record, name, run):
    now, before = parity.perform(name, run), {key: record[key] for key in record if key.startswith(f"{name}: ")}
    assert before and now.keys() == before.keys()
    for key, found in now.items():
        assert found["shape"] == before[key]["shape"], key
        assert found.get("means", []) == pytest.approx(before[key].get("means", []), abs=TOLERANCE, rel=TOLERANCE), key


@pytest.mark.parametrize("name", doors.runs_without_engine())
def test_the_command_line_and_python_give_what_is_on_record(record, name):
    compare(record, name, doors.runs_without_engine()[name])


@pytest.mark.parametrize("name", doors.runs_in_comfyui(None))
def test_nodes_give_what_is_on_record(record, comfy, name):
    compare(record, name, doors.runs_in_comfyui(comfy)[name])


def test_nothing_else_is_on_record(record):
    runs = {name.partition(": ")[0] for name in record}
    assert runs == {*doors.runs_without_engine(), *doors.runs_in_comfyui(None)}
