"""`autoft push`, to a stand-in on this machine that answers what huggingface_hub asks of the hub."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from autoft.cli.main import main
from tests.conftest import write_jsonl

TOKEN = "hf_of_the_test"
SECRET_ROW = "the seventh secret"
SETTINGS = (
    "max_steps=2", "base_dtype=float32", "seq_len=64", "micro_batch=4", "accumulation=1", "eval_rows=4",
    "max_new_tokens=4",
)  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: files by name, and whether each repository is private."""

    repositories: ClassVar[dict[str, dict[str, Any]]] = {}
    large: ClassVar[dict[str, bytes]] = {}
    commits: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").partition("?")[0]
        if name in self.repositories:
            info = {"id": name, "private": self.repositories[name]["private"], "sha": "0" * 40, "siblings": []}
            self._send(200, info)
        else:
            self._send(404, {"error": "Repository not found"})

    def do_PUT(self) -> None:
        body = self._body()
        self.large[hashlib.sha256(body).hexdigest()] = body
        self._send(200, {})

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid credentials"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif path == "/verify":
            asked = json.loads(body)
            self._send(200 if len(self.large[asked["oid"]]) == asked["size"] else 400, {})
        elif path.endswith("/commit/main"):
            self._commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
        else:
            self._send(404, {"error": path})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "others":
            self._send(403, {"error": "You don't have the rights to create a model there"})
            return
        known = name in self.repositories
        private = asked.get("visibility") == "private"
        self.repositories.setdefault(name, {"private": private, "files": {}})
        self._send(409 if known else 200, {"url": f"{self._address()}/{name}", "name": name})

    def _batch(self, asked: dict[str, Any]) -> None:
        links = {"upload": {"href": f"{self._address()}/put"}, "verify": {"href": f"{self._address()}/verify"}}
        objects = [{**each, "actions": links} for each in asked["objects"]]
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        files = {}
        for line in body.splitlines():
            value = json.loads(line)["value"]
            if "content" in value:
                files[value["path"]] = base64.b64decode(value["content"])
            elif "oid" in value:
                files[value["path"]] = self.large[value["oid"]]
        self.repositories[name]["files"] |= files
        self.commits.append(name)
        self._send(200, {"commitUrl": f"{self._address()}/{name}/commit/abc", "commitOid": "abc"})

    def _address(self) -> str:
        return f"http://{self.headers['Host']}"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while length := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests look at what the client says."""


def _mode(name: str) -> str:
    return "lfs" if name.endswith(".safetensors") else "regular"


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.repositories, Hub.large, Hub.commits = {}, {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory) -> Path:
    """A finished run, whose data have a row that is easily found again."""
    folder = tmp_path_factory.mktemp("made")
    os.environ["AUTOFT_HOME"] = str(folder / "home")
    rows = [{"prompt": f"{SECRET_ROW} {n}", "completion": "yes"} for n in range(40)]
    data = write_jsonl(folder / "rows.jsonl", rows)
    words = ["run", tiny_model, "--data", data, "--gpu", "cpu", "-o", folder / "adapter"]
    words += [part for setting in SETTINGS for part in ("--set", setting)]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert not ended.value.code
    return folder / "adapter"


def push(hub: str, home: Path, *words: object, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: huggingface_hub reads its settings when it is imported."""
    settings = {
        "HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*",
        "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "autoft", "push", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **settings})


def head_of(card: str) -> dict[str, Any]:
    """The YAML in front of a card."""
    head: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return head


def test_a_pushed_run_is_what_plain_peft_loads(hub, made, tiny_model, tmp_path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = push(hub, tmp_path, made, "me/adapter", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["url"] == f"{hub}/me/adapter/commit/abc"
    assert Hub.commits == ["me/adapter"], "one commit, all files or none"
    repository = Hub.repositories["me/adapter"]
    assert repository["private"] is False
    assert {name: len(content) for name, content in repository["files"].items()} == told["files"]
    downloaded = tmp_path / "downloaded"
    downloaded.mkdir()
    for name, content in repository["files"].items():
        (downloaded / name).write_bytes(content)
    models = [
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)
        for folder in (made, downloaded)
    ]
    ids = AutoTokenizer.from_pretrained(downloaded)("number 7", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.equal(models[0](ids).logits, models[1](ids).logits)


def test_no_path_of_this_machine_and_no_log_is_uploaded(hub, made, tiny_model, tmp_path) -> None:
    assert push(hub, tmp_path, made, "me/adapter").returncode == 0
    files = Hub.repositories["me/adapter"]["files"]
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "plan.toml"} <= set(files)
    assert not {"local.json", "events.jsonl", ".gitignore"} & set(files)
    for content in files.values():
        for path in (made.parent, tiny_model, Path.home(), tmp_path):
            assert f"{path}/".encode() not in content


def test_the_card_has_the_hub_s_metadata_and_what_a_person_wrote(autoft, made, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    text = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text(text.replace("tags:", "license: mit\ntags:") + "\nMy words.\n", encoding="utf-8")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    result |= {"base": "Qwen/Qwen2.5-0.5B-Instruct", "job": {**result["job"], "data": "openai/gsm8k/main:train"}}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    done = autoft("push", folder, "me/adapter", "--dry-run", "--json")
    assert done.code == 0, done.err
    card = json.loads(done.out)["card"]
    assert card.endswith("My words.\n")
    head = head_of(card)
    assert (head["base_model"], head["license"]) == ("Qwen/Qwen2.5-0.5B-Instruct", "mit")
    assert (head["library_name"], head["datasets"]) == ("peft", ["openai/gsm8k"])
    (index,) = head["model-index"]
    metrics = {metric["type"]: metric["value"] for metric in index["results"][0]["metrics"]}
    assert metrics["loss"] == result["after"]["loss"]
    assert index["results"][0]["dataset"]["name"].startswith("4 held-out rows of openai/gsm8k")


def test_the_licence_of_a_known_base_and_none_of_a_local_one(autoft, made, tmp_path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    plain = head_of(json.loads(autoft("push", folder, "me/adapter", "--dry-run", "--json").out)["card"])
    assert not {"license", "base_model", "datasets"} & set(plain)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    (folder / "result.json").write_text(json.dumps({**result, "base": "Qwen/Qwen2.5-0.5B-Instruct"}), encoding="utf-8")
    known = head_of(json.loads(autoft("push", folder, "me/adapter", "--dry-run", "--json").out)["card"])
    assert known["license"] == "apache-2.0"


def test_a_dry_run_shows_all_and_asks_nobody(made, tmp_path) -> None:
    done = push("http://127.0.0.1:9", tmp_path, made, "me/adapter", "--dry-run", token="")
    assert done.returncode == 0, done.stderr
    assert "adapter_model.safetensors" in done.stdout
    assert "Stays here: .gitignore, events.jsonl, local.json, report.html, result.json" in done.stdout
    assert "model-index:" in done.stdout
    assert "result.json and report.html show held-out rows of your data and stay here" in " ".join(done.stderr.split())


def test_held_out_rows_stay_here_unless_they_are_asked_for(hub, made, tmp_path) -> None:
    shown = push(hub, tmp_path, made, "me/shown", "--with-examples")
    assert shown.returncode == 0, shown.stderr
    hidden = push(hub, tmp_path, made, "me/hidden")
    assert hidden.returncode == 0, hidden.stderr
    holds = {
        name: [file for file, content in repository["files"].items() if SECRET_ROW.encode() in content]
        for name, repository in Hub.repositories.items()
    }
    assert set(holds["me/shown"]) >= {"README.md", "report.html", "result.json"}
    assert holds["me/hidden"] == []


def test_private_is_private_or_refused(hub, made, tmp_path) -> None:
    assert push(hub, tmp_path, made, "me/new", "--private").returncode == 0
    assert Hub.repositories["me/new"]["private"] is True
    Hub.repositories["me/open"] = {"private": False, "files": {}}
    refused = push(hub, tmp_path, made, "me/open", "--private")
    assert (refused.returncode, "me/open exists and is public" in refused.stderr) == (2, True)
    assert Hub.repositories["me/open"]["files"] == {}


def test_what_is_refused_names_the_fix(hub, made, tmp_path) -> None:
    for words, options, what in (
        ((made, "me/adapter"), {"token": ""}, "no token for the hub\nTo fix: hf auth login"),
        ((made, "me/adapter"), {"token": "hf_other"}, "does not let this token write there (HTTP 401)"),
        ((made, "others/adapter"), {}, "does not let this token write there (HTTP 403)"),
        ((made, "adapter"), {}, "adapter: not the name of a repository"),
        ((made, "me/adapter", "--offline"), {}, "this is offline"),
        ((tmp_path, "me/adapter"), {}, "neither a finished run nor an export"),
    ):
        done = push(hub, tmp_path / "home", *words, **options)
        assert (done.returncode, what in done.stderr) == (2, True), done.stderr
        assert TOKEN not in done.stderr
    nobody = push("http://127.0.0.1:9", tmp_path, made, "me/adapter")
    assert (nobody.returncode, "me/adapter: not uploaded" in nobody.stderr) == (2, True)
    assert Hub.commits == []


def test_a_folder_cannot_have_other_files_uploaded(autoft, made, tmp_path) -> None:
    """A result.json from elsewhere names files, and links lead out of the folder."""
    folder = tmp_path / "run"
    shutil.copytree(made, folder)
    (tmp_path / "id_rsa").write_text("secret", encoding="utf-8")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "linked").symlink_to(tmp_path)
    shown = json.loads(autoft("push", folder, "me/adapter", "--dry-run", "--json").out)
    assert {"notes.txt", "linked"} <= set(shown["left_out"])
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256(b"secret").hexdigest()
    for name in ("../id_rsa", "linked/id_rsa"):
        changed = {**result, "artifacts": {**result["artifacts"], name: digest}}
        (folder / "result.json").write_text(json.dumps(changed), encoding="utf-8")
        done = autoft("push", folder, "me/adapter", "--dry-run")
        assert (done.code, f"its {name} is not the file that the run wrote" in done.err) == (2, True)


def test_a_merged_model_is_pushed_with_a_card(autoft, hub, made, tmp_path) -> None:
    merged = tmp_path / "merged"
    assert autoft("merge", made, "-o", merged).code == 0
    (merged / "notes.txt").write_text("mine", encoding="utf-8")
    done = push(hub, tmp_path / "home", merged, "me/merged", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["left_out"] == ["notes.txt"]
    files = Hub.repositories["me/merged"]["files"]
    assert files["model.safetensors"] == (merged / "model.safetensors").read_bytes()
    head = head_of(files["README.md"].decode())
    assert (head["library_name"], head["pipeline_tag"]) == ("transformers", "text-generation")
