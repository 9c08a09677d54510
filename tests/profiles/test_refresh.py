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
from urllib.parse import parse_qs

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
    "other/bare": ({"id": "other/bare", "sha": COMMIT, "siblings": []}, {"config.json": '{"model_type": "opt"}'}),
}


class Hub(BaseHTTPRequestHandler):
    """The answers of the hub that are needed: what a repository is, its files, and an owner's repositories."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path == "api/models":
            owner = parse_qs(self.path.partition("?")[2])["author"][0]
            found = [{"id": name} for name in REPOSITORIES if name.split("/")[0].lower() == owner.lower()]
            self._send(200, json.dumps(found).encode(), {})
            return
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


def refresh(endpoint: str, home: Path, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    return subprocess.run(
        [sys.executable, "-m", "autoft.profiles.refresh", *words],
        capture_output=True,
        text=True,
        check=False,
        env=settings,
        cwd=cwd,
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
        (["some/broken"], "some/broken: config.json is not JSON"),
        (["a b/c"], "a b/c: no hub id"),
        ([], "no hub id given"),
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


@pytest.mark.parametrize("words", [("some/bare", "some/jinja"), ("some/bare", "some/bare", "some/j*")])
def test_several_models_are_written_into_the_catalogue_of_the_working_folder(endpoint, tmp_path, words) -> None:
    catalogue = tmp_path / "profiles" / "models"
    catalogue.mkdir(parents=True)
    done = refresh(endpoint, tmp_path / "home", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["profiles/models/bare.toml", "profiles/models/jinja.toml"]
    profile = ModelProfile.from_toml((catalogue / "jinja.toml").read_text(encoding="utf-8"))
    assert (profile.name, profile.hub_id, profile.chat_template) == ("jinja", "some/jinja", "gemma")


def test_a_family_is_a_pattern_of_one_owners_models_and_those_that_fail_are_a_line_each(endpoint, tmp_path) -> None:
    done = refresh(endpoint, tmp_path / "home", "SOME/*", "--into", str(tmp_path))
    assert done.returncode == 2
    written = sorted(path.name for path in tmp_path.glob("*.toml"))
    assert written == ["bare.toml", "jinja.toml", "model-1b.toml"]
    assert [Path(line).name for line in sorted(done.stdout.splitlines())] == written
    errors = done.stderr.splitlines()
    assert [line.split(":")[1] for line in errors] == [" some/broken", " some/data"]
    assert all(line.startswith("Error: ") and ". To fix: " in line for line in errors)


def test_one_model_into_a_folder_is_a_file(endpoint, tmp_path) -> None:
    done = refresh(endpoint, tmp_path / "home", "--into", str(tmp_path), "some/bare")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'bare.toml'}\n", "")


def test_files_are_replaced_only_with_force(endpoint, tmp_path) -> None:
    kept = tmp_path / "bare.toml"
    kept.write_text("mine", encoding="utf-8")
    words = ("some/bare", "some/jinja", "--into", str(tmp_path))
    done = refresh(endpoint, tmp_path / "home", *words)
    assert (done.returncode, kept.read_text(encoding="utf-8")) == (2, "mine")
    assert done.stderr == f"Error: some/bare: {kept} exists. To fix: --force replaces it\n"
    assert done.stdout == f"{tmp_path / 'jinja.toml'}\n"
    done = refresh(endpoint, tmp_path / "home", *words, "--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert ModelProfile.from_toml(kept.read_text(encoding="utf-8")).hub_id == "some/bare"


def test_two_models_of_one_name_are_not_written_over_each_other(endpoint, tmp_path) -> None:
    done = refresh(endpoint, tmp_path / "home", "some/bare", "other/bare", "--into", str(tmp_path), "--force")
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: other/bare: {tmp_path / 'bare.toml'} was just written for another model")
    assert ModelProfile.from_toml((tmp_path / "bare.toml").read_text(encoding="utf-8")).hub_id == "some/bare"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["some/nothing-*"], "some/nothing-*: none of 5 models of some match"),
        (["nobody/*"], "nobody/*: none of 0 models of nobody match"),
        (["*/bare"], "*/bare: a pattern is of one owner's models"),
        (["bare*"], "bare*: a pattern is of one owner's models"),
        (["some/bare", "--into", "nowhere"], "nowhere: no such folder"),
        (["some/bare", "some/jinja"], "profiles/models: no such folder"),
        (["some/bare", "--over"], "unrecognized arguments: --over"),
    ],
)
def test_what_cannot_be_written_is_told(endpoint, tmp_path, words, error) -> None:
    into = ["--into", "."] if "*" in words[0] else []
    done = refresh(endpoint, tmp_path / "home", *words, *into, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {error}")
    assert "To fix: " in done.stderr
    assert not list(tmp_path.glob("*.toml"))
