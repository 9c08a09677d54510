"""`autoft serve` in a process of its own, asked by OpenAI's client and by plain HTTP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from autoft.cli.main import main
from tests.conftest import write_jsonl

openai = pytest.importorskip("openai", reason="pip install -e .[dev]")
QUESTION = [{"role": "user", "content": "number 7"}]
SYSTEM = "Be short."
SETTINGS = (
    "max_steps=12", "learning_rate=0.01", "base_dtype=float32", "seq_len=64", "micro_batch=4", "accumulation=1",
    "eval_rows=4", "max_new_tokens=4",
)  # fmt: skip


class Served(NamedTuple):
    """A server: what it printed at its start, its process, and the file of what it says of requests."""

    about: dict[str, Any]
    process: subprocess.Popen[str]
    log: Path

    @property
    def client(self) -> Any:
        """OpenAI's, asking this server."""
        return openai.OpenAI(base_url=self.about["url"], api_key="none", max_retries=0)

    def ask(self, method: str, path: str, body: str | bytes = "", **headers: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a plain request."""
        parts = urlsplit(self.about["url"])
        with closing(http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())


@contextmanager
def serving(log: Path, *words: object) -> Iterator[Served]:
    """A server on a free port, ended by force if it was not before."""
    command = [sys.executable, "-m", "autoft", "serve", *map(str, words), "--port", "0", "--json"]
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            lines = []
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if line == "}\n":
                    break
            assert lines, log.read_text(encoding="utf-8")
            yield Served(json.loads("".join(lines)), process, log)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory) -> dict[str, Path]:
    """Two finished runs on one base, that have learnt other answers; the data of one have a system prompt."""
    folder = tmp_path_factory.mktemp("runs")
    os.environ["AUTOFT_HOME"] = str(folder / "home")
    for name, word, system in (("yes", "yes", []), ("no", "no no", [{"role": "system", "content": SYSTEM}])):
        turns = [[*system, {"role": "user", "content": f"number {n}"}] for n in range(40)]
        rows = [{"messages": [*turn, {"role": "assistant", "content": word}]} for turn in turns]
        data = write_jsonl(folder / f"{name}.jsonl", rows)
        words = ["run", tiny_model, "--data", data, "--gpu", "cpu", "-o", folder / name]
        words += [part for setting in SETTINGS for part in ("--set", setting)]
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        assert not ended.value.code
    return {name: folder / name for name in ("yes", "no")}


@pytest.fixture(scope="module")
def served(runs, tmp_path_factory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("log") / "log", runs["yes"], runs["no"]) as server:
        yield server


def chat(autoft, folder: Path, *words: object) -> str:
    """What `autoft chat` answers."""
    done = autoft("chat", folder, "-p", QUESTION[0]["content"], "--max-new-tokens", 4, "--json", *words)
    assert done.code == 0, done.err
    return json.loads(done.out)["answer"]


def test_what_it_says_at_its_start(served, runs, tiny_model) -> None:
    about = served.about
    assert about["models"] == ["yes", "no", "tiny"]
    assert about["url"].startswith("http://127.0.0.1:")
    modules = f"--lora-modules yes={runs['yes']} no={runs['no']}"
    assert about["production"] == [f"vllm serve {tiny_model} --enable-lora {modules}"]
    done = subprocess.run(about["curl"], shell=True, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["object"] == "chat.completion"


def test_the_client_lists_the_models(served) -> None:
    assert [model.id for model in served.client.models.list()] == ["yes", "no", "tiny"]
    assert served.client.models.retrieve("no").owned_by == "autoft"


def test_each_model_answers_as_in_autoft_chat(autoft, served, runs) -> None:
    expected = {"yes": chat(autoft, runs["yes"]), "no": chat(autoft, runs["no"])}
    expected["tiny"] = chat(autoft, runs["yes"], "--base")
    assert len(set(expected.values())) == 3
    for name in (*expected, *expected):
        reply = served.client.chat.completions.create(model=name, messages=QUESTION, max_tokens=4)
        assert reply.choices[0].message.content.strip() == expected[name], name
        assert reply.model == name


def test_an_adapter_answers_as_plain_peft_does(served, runs, tiny_model) -> None:
    """The system prompt of the run's data is part of the prompt, its template and its stop tokens count."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(runs["no"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model, dtype="float32"), runs["no"])
    messages = [{"role": "system", "content": SYSTEM}, *QUESTION]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        out = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    new = out[0, prompt["input_ids"].size(1) :]
    reply = served.client.chat.completions.create(model="no", messages=QUESTION, max_completion_tokens=20)
    assert reply.choices[0].message.content == tokenizer.decode(new, skip_special_tokens=True)
    assert reply.usage.prompt_tokens == prompt["input_ids"].size(1)
    assert reply.usage.completion_tokens == len(new)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + len(new)
    assert reply.choices[0].finish_reason == "stop"
    other = [{"role": "system", "content": ""}, *QUESTION]
    without = served.client.chat.completions.create(model="no", messages=other, max_tokens=1)
    assert without.usage.prompt_tokens == reply.usage.prompt_tokens - len(SYSTEM)  # a token a byte


def test_a_stream_has_the_same_text_and_counts(served) -> None:
    whole = served.client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=30)
    stream = served.client.chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=30, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(filter(None, texts)) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens == 30
    assert len(chunks) > 10


def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(served) -> None:
    def ask(**more: object) -> Any:
        return served.client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=30, **more)

    whole = ask().choices[0].message.content
    stop = whole[5:8]
    cut = ask(stop=[stop])
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < 30
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(stop=[stop], stream=True))
    assert streamed == cut.choices[0].message.content


def test_a_seed_repeats_what_was_sampled(served) -> None:
    def ask(seed: int | None, **more: object) -> str:
        reply = served.client.chat.completions.create(
            model="tiny", messages=QUESTION, max_tokens=20, temperature=1, seed=seed, **more
        )
        return reply.choices[0].message.content

    greedy = served.client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=20)
    assert ask(1) == ask(1)
    assert len({ask(1), ask(2), ask(None), ask(None)}) == 4
    assert ask(1, top_p=1e-6) == greedy.choices[0].message.content


def test_requests_at_once_each_get_their_own_model(served) -> None:
    def ask(name: str) -> str:
        return (
            served.client.chat.completions.create(model=name, messages=QUESTION, max_tokens=4)
            .choices[0]
            .message.content
        )

    alone = {name: ask(name) for name in ("yes", "no", "tiny")}
    names = ["yes", "no", "tiny"] * 6
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, names)) == [alone[name] for name in names]


def test_errors_are_openai_s(served) -> None:
    with pytest.raises(openai.BadRequestError) as unknown:
        served.client.chat.completions.create(model="ye", messages=QUESTION)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert "Did you mean yes?" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as too_long:
        served.client.chat.completions.create(model="yes", messages=[{"role": "user", "content": "word " * 600}])
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        served.client.completions.create(model="yes", prompt="x")
    chat_path = "/v1/chat/completions"
    body = json.dumps({"model": "yes", "messages": QUESTION})
    for status, reply in (
        (400, served.ask("POST", chat_path, "{")),
        (400, served.ask("POST", chat_path, b"\xff")),
        (400, served.ask("POST", chat_path, "[]")),
        (400, served.ask("POST", chat_path, body, **{"Content-Type": "text/plain"})),
        (403, served.ask("POST", chat_path, body, Host="evil.example")),
        (404, served.ask("GET", "/v1/models/none")),
        (404, served.ask("GET", "/")),
        (413, served.ask("POST", chat_path, "", **{"Content-Length": str(2**30)})),
        (501, served.ask("PUT", chat_path, body)),
    ):
        assert reply[0] == status
        assert set(reply[1]["error"]) == {"message", "type", "param", "code"}
    assert served.ask("POST", chat_path, body)[0] == 200
    assert "Traceback" not in served.log.read_text(encoding="utf-8")


def test_one_that_reaches_the_end_of_the_context_is_cut_there(served) -> None:
    reply = served.client.chat.completions.create(model="tiny", messages=QUESTION)
    assert reply.usage.total_tokens == 512
    assert reply.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_the_generation(served, stream: bool) -> None:
    before = served.log.read_text(encoding="utf-8").count("client gone")
    body = json.dumps({"model": "tiny", "messages": QUESTION, "stream": stream}).encode()
    parts = urlsplit(served.about["url"])
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if stream:
            assert b"200" in connection.recv(100)
    ends = time.monotonic() + 60
    while served.log.read_text(encoding="utf-8").count("client gone") == before:
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert served.client.chat.completions.create(model="yes", messages=QUESTION).choices


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_current_request(runs, tmp_path, number: signal.Signals) -> None:
    with serving(tmp_path / "log", runs["yes"]) as server:
        stream = iter(server.client.chat.completions.create(model="tiny", messages=QUESTION, stream=True))
        next(stream)
        server.process.send_signal(number)
        rest = list(stream)
        assert rest[-1].choices[0].finish_reason == "length"
        assert server.process.wait(60) == 0
        assert "Stopping after the current request" in server.log.read_text(encoding="utf-8")


def test_a_second_signal_ends_it_at_once(runs, tmp_path) -> None:
    with serving(tmp_path / "log", runs["yes"]) as server:
        stream = iter(server.client.chat.completions.create(model="tiny", messages=QUESTION, stream=True))
        next(stream)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.1)  # two at once may be one
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 130


def test_what_cannot_be_served(autoft, runs, tmp_path) -> None:
    twin = tmp_path / "yes"
    twin.mkdir()
    twice = autoft("serve", runs["yes"], twin, "--port", 0)
    assert (twice.code, "yes: two folders of this name" in twice.err) == (2, True)
    empty = autoft("serve", tmp_path, "--port", 0, "--host", "0.0.0.0")
    assert (empty.code, "holds no finished run" in empty.err) == (2, True)
    assert "without authentication" in " ".join(empty.err.split())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = autoft("serve", runs["yes"], "--port", port)
    assert (busy.code, f"--port {port + 1}" in busy.err) == (2, True)
