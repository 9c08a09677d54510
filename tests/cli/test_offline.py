"""`--offline`: no socket to any machine is opened, counted where Python opens them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = """
import os, sys

def note(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        target = args[-1] if event in ("socket.connect", "socket.sendto") else args[0]
        if not isinstance(target, (str, bytes)) or event.startswith("socket.get"):
            with open(os.environ["SOCKETS"], "a") as file:
                file.write(f"{event} {target}\\n")

sys.addaudithook(note)
"""


def run(tmp_path: Path, home: Path, *words: object) -> tuple[subprocess.CompletedProcess[str], str]:
    """A command in a process of its own, to which the environment allows the hub; and the sockets that it opened."""
    (tmp_path / "hook").mkdir(exist_ok=True)
    (tmp_path / "hook" / "sitecustomize.py").write_text(COUNT)
    sockets = tmp_path / "sockets"
    sockets.write_text("")
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    env |= {
        "SOCKETS": str(sockets),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "AUTOFT_HOME": str(home),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nobody answers there
    }
    words = (sys.executable, "-m", "autoft", *words)
    done = subprocess.run([str(word) for word in words], env=env, capture_output=True, text=True, check=False)
    return done, sockets.read_text()


@pytest.mark.parametrize("words", [("--offline", "plan", "some/model"), ("plan", "some/model", "--offline")])
def test_a_model_that_is_not_here_is_refused_without_asking(tmp_path, own_home, words) -> None:
    done, sockets = run(tmp_path, own_home, *words)
    assert done.returncode == 2
    assert "autoft is offline (--offline or HF_HUB_OFFLINE)" in done.stderr
    assert sockets == ""


def test_the_starter_that_is_not_here_is_refused_without_asking(tmp_path, own_home) -> None:
    done, sockets = run(tmp_path, own_home, "run", "--offline")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2].startswith("Error: the starter model is not here yet, and --offline")
    assert sockets == ""


def test_a_whole_run_opens_no_socket_and_without_the_option_the_count_sees_them(
    tmp_path, own_home, tiny_model, data_file
) -> None:
    settings = ("--gpu", "cpu", "--set", "max_steps=1", "--set", "max_new_tokens=2")
    out = tmp_path / "out"
    done, sockets = run(tmp_path, own_home, "run", tiny_model, "--data", data_file, *settings, "-o", out, "--offline")
    assert done.returncode == 0, done.stderr
    done, more = run(tmp_path, own_home, "chat", out, "-p", "hello", "--max-new-tokens", 2, "--offline")
    assert done.returncode == 0, done.stderr
    assert sockets + more == ""
    done, sockets = run(tmp_path, own_home, "plan", "some/model")
    assert done.returncode == 2
    assert sockets
