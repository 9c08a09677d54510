"""Where autoft keeps its own things, and how it writes: aside first, then renamed, so that nothing is half there."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def home() -> Path:
    """AUTOFT_HOME, or the platform's cache folder. Not created here."""
    configured = os.environ.get("AUTOFT_HOME")
    if configured:
        return Path(configured).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("autoft", appauthor=False))


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` when the block ends well and is deleted when it does not.

    A `target` that another process has filled meanwhile stays as it is.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield staging
        share(staging)
        if _is_filled(target):  # another process was quicker
            shutil.rmtree(staging, ignore_errors=True)
        else:
            staging.replace(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`, all of it or nothing, even if the power fails meanwhile."""
    write_lines(path, (text,))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write UTF-8 pieces of text to `path` as they come, all of them or nothing, even if the power fails meanwhile."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def share(path: Path) -> None:
    """Give it the permissions that the user gives to new files: who writes aside under a secret name gives fewer."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
