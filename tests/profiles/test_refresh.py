"""An entry from a hub: a small HTTP server that answers as the hub does, asked by the real client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from autoft.profiles.model_catalogue import ModelProfile

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {
    "_name_or_path": "elsewhere",
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": None},
    "sliding_window": None,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 1000,
}
TOKENIZER = {"eos_token": {"content": "<|im_end|>"}, "chat_template": "{{ '<|im_start|>' }}"}
INFO = {
    "id": "Some/Model-1B",
    "sha": COMMIT,
    "gated": "manual",
    "tags": ["license:other", "text-generation"],
    "cardData": {"license": "other", "license_name": "some-licence"},
    "safetensors": {"parameters": {"BF16": 196_000}, "total": 196_000},
    "siblings": [],
}
REPOSITORIES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "Some/Model-1B": (INFO, {"config.json": json.dumps(CONFIG), "tokenizer_config.json": json.dumps(TOKENIZER)}),
    "some/bare": (
        {"id": "some/bare", "sha": COMMIT, "gated": False, "tags": ["license:mit"], "siblings": []},
        {"config.json": json.dumps({"model_type": "gpt2", "n_embd": 8, "auto_map": {"AutoConfig": "x.Y"}})},
    ),
    "some/jinja": (
        {"id": "some/jinja", "sha": COMMIT, "gated": False, "siblings": []},
        {"config.json": '{"model_type": "gemma"}', "chat_template.jinja": "<start_of_turn>"},
    ),
    "some/data": ({"id": "some/data", "sha": COMMIT, "siblings": []}, {}),
    "some/broken": ({"id": "some/broken", "sha": COMMIT, "siblings": []}, {"config.json": "{"}),
}


class Hub(BaseHTTPRequestHandler):
    """The two answers of the hub that are needed: what a repository is, and its files."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            name = path.removeprefix("api/models/").partition("/revision/")[0]
            if name == "some/gated":
                self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            elif name in REPOSITORIES:
                self._send(200, json.dumps(REPOSITORIES[name][0]).encode(), {})
            else:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        name, _, rest = path.partition("/resolve/")
        commit, _, file = rest.partition("/")
        text = REPOSITORIES[name][1].get(file) if commit == COMMIT else None
        if text is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            self._send(200, text.encode(), {"X-Repo-Commit": COMMIT, "ETag": f'"{hash(text):x}"'})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests look at what the client says."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def refresh(endpoint: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    return subprocess.run(
        [sys.executable, "-m", "autoft.profiles.refresh", *words],
        capture_output=True,
        text=True,
        check=False,
        env=settings,
    )


def test_an_entry_says_what_the_hub_does(endpoint, tmp_path) -> None:
    done = refresh(endpoint, tmp_path, "Some/Model-1B")
    assert done.returncode == 0, done.stderr
    profile = ModelProfile.from_toml(done.stdout)
    assert profile == ModelProfile(
        name="model-1b",
        hub_id="Some/Model-1B",
        revision=COMMIT,
        licence="some-licence",
        gated=True,
        source="config.json of Some/Model-1B",
        parameters=196_000,
        parameters_source="total of the hub's safetensors",
        chat_template="chatml",
        stop_tokens=("<|im_end|>",),
        base_dtype="bfloat16",
        config={
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "vocab_size": 1000,
        },
        config_null=("sliding_window",),
    )
    assert profile.full_config["sliding_window"] is None


def test_what_the_hub_does_not_know_is_left_out(endpoint, tmp_path) -> None:
    profile = ModelProfile.from_toml(refresh(endpoint, tmp_path, "some/bare").stdout)
    assert (profile.licence, profile.gated, profile.parameters, profile.chat_template) == ("mit", False, None, "none")
    assert profile.notes == ("its repository brings code of its own, which autoft does not run",)
    assert profile.config == {"model_type": "gpt2", "n_embd": 8}
    assert profile.stop_tokens == ()
    profile = ModelProfile.from_toml(refresh(endpoint, tmp_path, "some/jinja").stdout)
    assert (profile.licence, profile.chat_template) == ("unknown", "gemma")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nobody/nothing"], "nobody/nothing: the hub has no such model, or it is private"),
        (["some/gated"], "some/gated: the hub wants its licence accepted first"),
        (["some/data"], "some/data: its repository has no config.json of transformers"),
        (["some/broken"], "some/broken: config.json is no JSON"),
        (["a b/c"], "a b/c: no hub id"),
        ([], "one hub id is wanted"),
    ],
)
def test_what_cannot_be_had_is_told_in_a_line(endpoint, tmp_path, words, error) -> None:
    done = refresh(endpoint, tmp_path, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {error}")
    assert len(done.stderr.splitlines()) == 2
    assert "To fix: " in done.stderr


def test_without_a_network(tmp_path) -> None:
    done = refresh("http://127.0.0.1:9", tmp_path, "some/bare")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: some/bare: the hub cannot be reached")
