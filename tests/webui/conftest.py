"""A running WebUI of each kind whose checkout is named: A1111_PATH, NEO_PATH, FORGE_PATH (see `hosts.py`)."""

import hosts
import pytest


@pytest.fixture(scope="package", params=[kind for kind in hosts.KINDS if hosts.checkout(kind)] or ["none"])
def webui(request, tmp_path_factory):
    kind = request.param
    if kind == "none":
        pytest.skip("NO WEBUI TESTED: A1111_PATH, NEO_PATH and FORGE_PATH are unset")
    data = hosts.make_data(kind, tmp_path_factory.mktemp(kind))
    with hosts.running(kind, data) as running:
        yield running


@pytest.fixture(scope="package")
def empty(webui, tmp_path_factory):
    """The same WebUI with this extension and no checkpoint."""
    data = hosts.make_data(webui.kind, tmp_path_factory.mktemp("empty"), checkpoint=False)
    with hosts.running(webui.kind, data) as running:
        yield running
