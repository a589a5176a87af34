"""A file is replaced by a whole one or stays as it was."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from ldznet_core.imaging.files import replacing


def test_the_new_file_takes_the_place_of_the_old_one_at_the_end(tmp_path):
    path = tmp_path / "new" / "mask.bin"
    with replacing(path) as unfinished:
        unfinished.write_bytes(b"one")
        assert not path.exists()
    with replacing(path) as unfinished:
        unfinished.write_bytes(b"two")
        assert path.read_bytes() == b"one"
    assert path.read_bytes() == b"two" and list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "mask.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="half way"), replacing(path) as unfinished:
        unfinished.write_bytes(b"hal")
        raise RuntimeError("half way")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_it_is_up_to_the_user(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with replacing(tmp_path / "weights.safetensors") as unfinished:
            save_file({"a": torch.zeros(1)}, unfinished)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "weights.safetensors").stat().st_mode) == mode
