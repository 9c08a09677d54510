"""Can it write where it must, and reach what it may need? Folders, the hub, the hub's token."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from autoft.profiles.host import hf_home
from autoft.trainer.doctor.finding import Finding
from autoft.units import GIB, MIB, size

WRITTEN_BYTES = MIB
# Assumption: a 7B model in 16 bits is 15 GB to download; autoft's own cache is small.
HF_ROOM_BYTES, OWN_ROOM_BYTES, LEAST_BYTES = 20 * GIB, GIB, 100 * MIB
HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 5.0


def folder(name: str, path: Path, room_bytes: int, setting: str | None = None) -> Finding:
    """A real file can be written to `path`, read back and deleted, and so much is free there.

    Folders that are missing are made, and gone again afterwards. setting: what moves the folder, if it is not `name`.
    """
    setting = setting or name
    fix = f"make it writable, or set {setting} to a folder that is"
    try:
        free_bytes = _written_and_free(path)
    except OSError as error:
        return Finding(name=name, status="failed", found=f"{path}: {error.strerror or error}", fix=fix)
    return room(name, setting, path, free_bytes, room_bytes)


def room(name: str, setting: str, path: Path, free_bytes: int, room_bytes: int) -> Finding:
    """Whether `free_bytes` are enough. room_bytes: what should be free."""
    state = f"{path}: writable, {size(free_bytes)} free"
    if free_bytes >= room_bytes:
        return Finding(name=name, status="ok", found=state)
    fix = f"free some of that disk, or set {setting} to a folder on another; {size(room_bytes)} are comfortable"
    return Finding(name=name, status="failed" if free_bytes < LEAST_BYTES else "warning", found=state, fix=fix)


def _written_and_free(path: Path) -> int:
    """Raises: OSError."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        content = os.urandom(WRITTEN_BYTES)
        descriptor, name = tempfile.mkstemp(prefix=".autoft-doctor-", dir=path)
        file = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as written:
                written.write(content)
                written.flush()
                os.fsync(written.fileno())
            if file.read_bytes() != content:
                raise OSError(None, "a file reads back other than it was written")
        finally:
            file.unlink(missing_ok=True)
        return shutil.disk_usage(path).free
    finally:
        for made in missing:
            with suppress(OSError):  # another process has put something there
                made.rmdir()


def endpoint(environ: Mapping[str, str] | None = None) -> str:
    """The hub's address: HF_ENDPOINT, or the public one."""
    environ = os.environ if environ is None else environ
    return (environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def hub_status(address: str) -> int:
    """HTTP status of the hub at `address`, asked by its own library, with its proxies and certificates, no token."""
    from huggingface_hub import get_session

    response = get_session().get(f"{address}/api/models", params={"limit": 1}, timeout=HUB_TIMEOUT_S)
    return int(response.status_code)


def hub(address: str, status: int | None, reason: str = "") -> Finding:
    """What the hub's answer means. status: None when there was none, for that reason."""
    where = shown(address)
    if status is not None and status < 400:
        return Finding(name="hub", status="ok", found=f"{where} answers")
    if status in (401, 403):
        return Finding(
            name="hub", status="warning", found=f"{where} wants to know who asks (HTTP {status})", fix="hf auth login"
        )
    answer = f"answers HTTP {status}" if status is not None else f"does not answer: {_without(address, reason)}"
    return Finding(
        name="hub",
        status="failed",
        found=f"{where} {answer}",
        fix="check network, proxy and HF_ENDPOINT; or --offline with models that are here already",
    )


def shown(address: str) -> str:
    """An address without the user and password that it may hold."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else address


def _without(address: str, reason: str) -> str:
    held = urlsplit(address).netloc.rpartition("@")[0]
    return reason.replace(f"{held}@", "") if held else reason


def token(environ: Mapping[str, str] | None = None) -> Finding:
    """Whether the hub would be told who asks. Nothing of the token is shown, not even its length."""
    environ = os.environ if environ is None else environ
    named = [name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if environ.get(name, "").strip()]
    path = Path(environ.get("HF_TOKEN_PATH") or hf_home(environ) / "token").expanduser()
    text, where = (environ[named[0]], named[0]) if named else (_read(path), str(path))
    text = text.strip()
    if not text:
        return Finding(
            name="token",
            status="warning",
            found="none",
            fix="hf auth login, needed only for models whose licence must be accepted first, such as Llama",
        )
    if any(letter.isspace() or letter in "\"'" for letter in text):
        return Finding(
            name="token",
            status="failed",
            found=f"{where} has quotes or blanks in it, which no token has",
            fix="set it again without them, or hf auth login",
        )
    return Finding(name="token", status="ok", found=f"from {where}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
