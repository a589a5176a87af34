"""Talks to a running ComfyUI server, and turns workflows that its page has saved into what the server takes."""

import io
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
PACK = "ldznet-masks"  # the folder's name in custom_nodes/
TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))
EXAMPLES = [path for path in TEMPLATES if not path.stem.startswith("impact_pack")]  # of ComfyUI's nodes and ours
Graph = dict[str, dict]  # a prompt in API format: {id: {"class_type": ..., "inputs": {name: value or [id, output]}}}


class RunFailed(Exception):
    """The server refused a prompt or ended it early; `kind` is the event's name or "refused"."""

    def __init__(self, kind: str, message: str):
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


@dataclass
class Run:
    """A prompt that has ended: node ids that came from the cache, what nodes showed, seconds since POST."""

    cached: set[str]
    outputs: dict[str, dict]
    seconds: float


@dataclass
class Server:
    url: str
    log: Path
    process: Popen
    read: int = 0  # bytes of the log that `new_log` has given

    def get(self, path: str, **query) -> bytes:
        query = f"?{urllib.parse.urlencode(query)}" if query else ""
        with urllib.request.urlopen(f"{self.url}{path}{query}", timeout=60) as reply:
            return reply.read()

    def json(self, path: str):
        return json.loads(self.get(path))

    def post(self, path: str, data) -> bytes:
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.read()

    def start(self, graph: Graph) -> str:
        """Queue a prompt; its id. Raises RunFailed where the server finds any of it invalid."""
        try:
            reply = json.loads(self.post("/prompt", {"prompt": graph}))
        except urllib.error.HTTPError as error:
            raise RunFailed("refused", error.read().decode()) from None
        if reply["node_errors"]:  # the rest of the prompt runs
            raise RunFailed("refused", json.dumps(reply["node_errors"]))
        return reply["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 300) -> Run:
        """Wait until a prompt has ended. Raises RunFailed where that was not in success."""
        began, entry = time.perf_counter(), None
        while not entry:
            if time.perf_counter() - began > timeout or self.process.poll() is not None:
                raise TimeoutError(f"no result after {timeout} s or at the server's end:\n{self.tail()}")
            time.sleep(0.1)
            entry = self.json(f"/history/{prompt_id}").get(prompt_id)
        events = dict(entry["status"]["messages"])
        for kind in ("execution_error", "execution_interrupted"):
            if kind in events:
                event = events[kind]
                raise RunFailed(kind, event.get("exception_message", event["node_type"]).strip())
        assert entry["status"]["status_str"] == "success", entry["status"]
        cached = events.get("execution_cached", {}).get("nodes", [])
        return Run(set(cached), entry["outputs"], time.perf_counter() - began)

    def run(self, graph: Graph, timeout: float = 300) -> Run:
        return self.wait(self.start(graph), timeout)

    def fails(self, graph: Graph) -> str:
        """The message with which a prompt ends. What the server logs of it is passed over."""
        try:
            self.run(graph)
        except RunFailed as error:
            assert error.kind == "execution_error", error
            assert self.new_log().count("Traceback") == 1
            return error.message
        raise AssertionError("the run was expected to fail")

    def file(self, shown: dict) -> bytes:
        """A picture that a node showed or saved, as it lies on the server's disk."""
        return self.get("/view", **{key: shown[key] for key in ("filename", "subfolder", "type")})

    def pictures(self, run: Run, node: str) -> list[np.ndarray]:
        """The pictures of an output node, [h, w] or [h, w, 3]."""
        return [np.asarray(Image.open(io.BytesIO(self.file(shown)))) for shown in run.outputs[node]["images"]]

    def new_log(self) -> str:
        text = self.log.read_bytes()[self.read :]
        self.read += len(text)
        return text.decode(errors="replace")

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def node(class_type: str, **inputs) -> dict:
    """A node of a prompt. Links are tuples (node id, index of the output)."""
    return {"class_type": class_type, "inputs": {k: list(v) if isinstance(v, tuple) else v for k, v in inputs.items()}}


UNSEEN = {"Note", "MarkdownNote"}
MUTED = {2, 4}  # never executed, bypassed
SEEDS = {"seed", "noise_seed"}


def has_widget(spec: Sequence) -> bool:
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    is_value = isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    return is_value and not options.get("forceInput")


def widget_names(definition: dict) -> list[str]:
    """What the numbers in a saved node's `widgets_values` belong to. The page adds a control after seeds (what to do
    with them after a run) and, last, the button of what can be uploaded; both are named ""."""
    names, buttons = [], []
    for group in ("required", "optional"):
        for name, spec in definition["input"].get(group, {}).items():
            if not has_widget(spec):
                continue
            options = spec[1] if len(spec) > 1 else {}
            names.append(name)
            if options.get("control_after_generate", name in SEEDS and spec[0] == "INT"):
                names.append("")
            if options.get("image_upload"):
                buttons.append("")
    return names + buttons


def to_api(workflow: dict, object_info: dict) -> Graph:
    """The prompt that the page would send for a workflow it saved. Muted and bypassed nodes are left out."""
    used = [n for n in workflow["nodes"] if n["type"] not in UNSEEN and n.get("mode", 0) not in MUTED]
    ids = {n["id"] for n in used}
    sources = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    graph = {}
    for saved in used:
        assert saved["type"] in object_info, f"the server has no node {saved['type']}"
        names, values = widget_names(object_info[saved["type"]]), saved.get("widgets_values", [])
        assert len(names) == len(values), f"{saved['type']} saved {values} for {names}"
        inputs = {name: value for name, value in zip(names, values, strict=True) if name}
        for slot in saved.get("inputs", []):
            source = sources.get(slot.get("link"))
            if source and source[0] in ids:
                inputs[slot["name"]] = [str(source[0]), source[1]]
        graph[str(saved["id"])] = {"class_type": saved["type"], "inputs": inputs}
    return graph
