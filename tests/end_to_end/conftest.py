"""A real ComfyUI server with this pack among its custom nodes.

COMFYUI_PATH names a ComfyUI checkout, COMFYUI_PYTHON the python that runs it (this one if not given). Nothing is
written into the checkout: models, inputs, outputs and settings lie in a temporary folder.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

import pytest
from client import PACK, ROOT, Server
from engine import IDLE

START_SECONDS = 180
# Without UpscaleModelLoader, version 1.27 of the page cannot show CheckpointLoaderSimple.
STAND_INS = {**IDLE, "spandrel": {"spandrel": ("ModelLoader", "ImageModelDescriptor")}}
ARGUMENTS = ("--cpu", "--listen", "127.0.0.1", "--disable-auto-launch", "--disable-api-nodes")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes a minute or more (leave out with -m 'not slow')")


def pytest_collection_modifyitems(items):
    if not os.environ.get("COMFYUI_PATH"):
        skip = pytest.mark.skip(reason="NO SERVER TESTED: set COMFYUI_PATH to a ComfyUI checkout to run these tests")
        for item in items:
            if item.path.parent == Path(__file__).parent:  # the hook is given those of other folders as well
                item.add_marker(skip)


@pytest.fixture(scope="session")
def checkout():
    return Path(os.environ["COMFYUI_PATH"]).resolve()


@pytest.fixture(scope="session")
def python():
    return os.environ.get("COMFYUI_PYTHON", sys.executable)


@pytest.fixture(scope="session")
def base(checkout, tmp_path_factory):
    """ComfyUI's base directory: the pack as it would be committed, and a picture in input/."""
    base = tmp_path_factory.mktemp("comfyui")
    for folder in ("models", "input", "output", "user"):
        (base / folder).mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():  # a deleted file is listed until that is committed
            target = base / "custom_nodes" / PACK / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    shutil.copy(ROOT / "docs/pictures/park.png", base / "input")
    return base


@pytest.fixture(scope="session")
def environment(python, tmp_path_factory):
    """The servers' environment, with stand-ins for what that python lacks of STAND_INS."""
    look = f"import importlib.util as u; print(*[n for n in {list(STAND_INS)} if not u.find_spec(n)])"
    missing = subprocess.run([python, "-c", look], capture_output=True, check=True, text=True).stdout.split()
    folder = tmp_path_factory.mktemp("stand-ins")
    for module, members in (item for name in missing for item in STAND_INS[name].items()):
        file = folder / module.replace(".", "/") / "__init__.py"
        file.parent.mkdir()
        file.write_text("".join(f"class {member}: pass\n" for member in members))
        if "." in module:
            with (file.parents[1] / "__init__.py").open("a") as parent:
                parent.write(f"from . import {file.parent.name}\n")
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **given}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            server.json("/system_stats")
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    pytest.fail(f"ComfyUI did not start. The end of its log:\n{server.tail()}", pytrace=False)


@pytest.fixture(scope="session")
def servers():
    """Those that run, by their arguments. They end with the session."""
    servers: dict[tuple[str, ...], Server] = {}
    yield servers
    for server in servers.values():
        server.process.terminate()
    for server in servers.values():
        try:
            server.process.wait(10)
        except subprocess.TimeoutExpired:
            server.process.kill()


@pytest.fixture(scope="session")
def serve(servers, checkout, python, base, environment, tmp_path_factory):
    """serve(*arguments): the server that was started with these arguments. All share one base directory."""

    def start(*arguments: str) -> Server:
        if arguments in servers:
            return servers[arguments]
        port, own = free_port(), tmp_path_factory.mktemp("server")
        places = ("--base-directory", base, "--temp-directory", own, "--database-url", f"sqlite:///{own}/comfy.db")
        command = [python, checkout / "main.py", *ARGUMENTS, "--port", str(port), *places, *arguments]
        with (own / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=subprocess.STDOUT)
        server = servers[arguments] = Server(f"http://127.0.0.1:{port}", own / "log", process)
        wait_until_ready(server)
        imports = [line for line in server.new_log().splitlines() if "seconds" in line and PACK in line]
        assert imports and "FAILED" not in imports[-1], server.tail()
        return server

    return start


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture(scope="module")
def page(serve, tmp_path_factory):
    """ComfyUI's page in a browser, ready to be worked with."""
    from browser import open_page  # needs selenium

    page = open_page(serve(), tmp_path_factory.mktemp("browser"))
    yield page
    page.quit()


@pytest.fixture(autouse=True)
def no_traceback(servers):
    """Whatever a test does, no server logs an error that the test did not ask for."""
    yield
    logs = [server.new_log() for server in servers.values()]
    assert not any("Traceback" in log for log in logs), "\n".join(logs)
