"""A running WebUI of each kind whose checkout is named: A1111_PATH, NEO_PATH, FORGE_PATH (see `hosts.py`)."""

import hosts
import pytest


@pytest.fixture(scope="package", params=[kind for kind in hosts.KINDS if hosts.checkout(kind)] or ["none"])
def kind(request):
    if request.param == "none":
        pytest.skip("NO WEBUI TESTED: A1111_PATH, NEO_PATH and FORGE_PATH are unset")
    return request.param


@pytest.fixture(scope="package")
def webui(kind, tmp_path_factory):
    with hosts.running(kind, hosts.make_data(kind, tmp_path_factory.mktemp(kind))) as running:
        yield running


@pytest.fixture(scope="package")
def empty(kind, tmp_path_factory):
    """The same WebUI with this extension and no checkpoint."""
    with hosts.running(kind, hosts.make_data(kind, tmp_path_factory.mktemp("empty"), checkpoint=False)) as running:
        yield running
