"""The WebUI around us, on fakes: no checkpoint yet, and work that is done where models run."""

import sys
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import webui_models

from ldznet_core.errors import InputError
from ldznet_webui import host


@pytest.fixture
def a1111(monkeypatch, made):
    model = webui_models.a1111(monkeypatch, made)
    webui_models.package(monkeypatch, "modules.call_queue", queue_lock=nullcontext())
    return model


@pytest.fixture
def forge(monkeypatch, made):
    """Forge before its first picture: a checkpoint is chosen, and loaded when work asks for it."""
    model = webui_models.forge(monkeypatch, made)
    shared, data = sys.modules["modules.shared"], SimpleNamespace(forge_loading_parameters={"checkpoint_info": "mini"})
    shared.sd_model = SimpleNamespace()  # stands for none

    def run_and_wait_result(work):
        """Its main thread prints errors and gives None."""
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    webui_models.package(monkeypatch, "modules.call_queue", queue_lock=nullcontext())
    webui_models.package(
        monkeypatch, "modules.sd_models", model_data=data,
        forge_model_reload=lambda: setattr(shared, "sd_model", model),
    )  # fmt: skip
    webui_models.package(monkeypatch, "modules_forge")
    webui_models.package(
        monkeypatch, "modules_forge.main_thread", run_and_wait_result=run_and_wait_result
    )
    monkeypatch.setattr(host, "is_forge", lambda: True)
    return data


def test_without_a_checkpoint_one_sentence_says_so(a1111):
    assert host.exclusive(lambda: host.backbone().name) == "test"
    sys.modules["modules.shared"].sd_model = None
    with pytest.raises(InputError, match="no checkpoint is loaded: choose one at the top of the page"):
        host.exclusive(host.backbone)


def test_other_descendants_of_forge_are_refused_in_one_sentence(a1111, monkeypatch):
    monkeypatch.setattr(host, "there", lambda module: module == "modules_forge")
    with pytest.raises(InputError, match="masks cannot be made in Forge Classic and reForge: use AUTOMATIC1111's"):
        host.exclusive(host.backbone)


def test_forge_loads_its_checkpoint_for_work_but_never_in_the_middle_of_a_picture(forge):
    with pytest.raises(InputError, match="no checkpoint is loaded"):
        host.backbone()
    assert host.exclusive(lambda: host.backbone().name) == "test" and host.backbone().name == "test"


def test_without_a_checkpoint_forge_is_not_asked_to_load_one(forge):
    forge.forge_loading_parameters = {}
    with pytest.raises(InputError, match="no checkpoint is loaded"):
        host.exclusive(lambda: 1)


def test_what_work_raises_comes_back_from_the_main_thread(forge):
    assert host.exclusive(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        host.exclusive(lambda: 1 / 0)


def test_decoders_are_those_of_the_folder_and_the_bundled_ones(monkeypatch, tmp_path, made):
    webui_models.package(monkeypatch, "modules")
    webui_models.package(monkeypatch, "modules.paths", models_path=str(tmp_path))
    assert host.decoder_names() == list(host.BUNDLED)
    (tmp_path / "ldznet" / "mine").mkdir(parents=True)
    (tmp_path / "ldznet" / "mine" / "znet.safetensors").write_bytes((made / "znet.safetensors").read_bytes())
    assert host.decoder_names()[0] == "mine/znet.safetensors" and host.decoder("mine/znet.safetensors").kind == "znet"
    with pytest.raises(InputError, match="no decoder '../other.safetensors' in "):
        host.decoder("../other.safetensors")
