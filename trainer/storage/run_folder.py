"""The output folder of a run: written aside under a name that says so, and renamed when it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from autoft.errors import OutputError, Resumable, some
from autoft.trainer.storage.checkpoint import has_checkpoints, sync
from autoft.trainer.storage.ownership import CHECKPOINTS, LITTER, RUN, WORK, discard, foreign, is_finished

UNFINISHED = ".unfinished"
SMALL_FILES_BYTES = 2**26  # assumption: tokenizer, card, record and the rest beside the trained weights


def free_name(parent: Path, stem: str) -> Path:
    """parent/stem, or parent/stem-2, -3, ... if that is taken."""
    number = 1
    while True:
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        if not path.exists() and not unfinished(path).exists():
            return path
        number += 1


def unfinished(out: Path) -> Path:
    """Where a run that will become `out` is written."""
    return out.with_name(out.name + UNFINISHED)


def output_bytes(trainable_params: int, *, bytes_each: int = 4) -> int:
    """What a run writes: the trained weights, adapter or model, and the small files beside them.

    bytes_each: of a weight; no dtype that is trained has more than four.
    """
    return bytes_each * trainable_params + SMALL_FILES_BYTES


def check_output(out: Path, *, force: bool, needed_bytes: int = 0) -> None:
    """Raises: OutputError when a run could not or must not be written to `out`. Changes nothing."""
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise OutputError(f"{out}: a file, not a folder", fix="-o another folder")
    try:
        str(out).encode()
    except UnicodeEncodeError:  # from bytes that are none; safetensors writes no file there
        raise OutputError(f"{out}: a name that is not valid UTF-8", fix="-o another folder") from None
    if Path.cwd().is_relative_to(out.resolve()):
        raise OutputError(f"{out}: the folder that you are in", fix="-o a new folder in it")
    finished = is_finished(out)
    if finished and not force:
        raise OutputError(f"{out}: holds a finished run", fix="-o another folder, or --force to replace it")
    if has_checkpoints(unfinished(out) / CHECKPOINTS) and not force:
        raise OutputError(f"{out}: holds an unfinished run", fix=f"autoft resume {out}, or --force to start over")
    if out.is_dir() and not finished and any(out.iterdir()):
        raise OutputError(f"{out}: a folder with other files in it", fix="-o a new or empty folder")
    for folder in (out, unfinished(out), _replaced(out)):
        check_ours(folder)
    if _lock(out).is_file() and _lock(out).stat().st_size:  # autoft's is empty
        raise OutputError(f"{_lock(out)}: not autoft's, and it has to write there", fix="-o another folder")
    parent = _nearest_existing(out.parent)
    if not _is_writable(parent):
        raise OutputError(f"{out}: {parent} cannot be written to", fix="-o a folder of your own")
    check_disk(out, needed_bytes, "the run")


def check_ours(folder: Path) -> None:
    """Raises: OutputError when `folder` holds what no run has written, so that it cannot be removed or replaced."""
    if names := foreign(folder):
        raise OutputError(
            f"{folder}: autoft would have to remove it, and did not write {some(names)}",
            fix="move that elsewhere, or -o another folder",
        )


def check_disk(
    folder: Path, needed_bytes: int, what: str, *, fix: str = "free some room, or choose a folder on another disk"
) -> None:
    """Raises: OutputError when the disk of `folder` has less than needed_bytes free."""
    free = shutil.disk_usage(_nearest_existing(folder)).free
    if free < needed_bytes:
        mib = 2**20
        raise OutputError(
            f"{folder}: {what} needs {needed_bytes / mib:,.0f} MiB, its disk has {free / mib:,.0f} MiB free",
            fix=fix,
        )


@contextmanager
def output_folder(out: Path, *, force: bool, needed_bytes: int = 0) -> Iterator[Path]:
    """The unfinished folder to write to, which becomes `out` when the block ends well, and stays unfinished if not.

    What ends before its first checkpoint leaves nothing behind: nothing was made of it yet.
    Raises: OutputError when `check_output` does, or another run is writing there.
    """
    check_output(out, force=force, needed_bytes=needed_bytes)
    staging = unfinished(out)
    staging.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(out):
        discard(staging)
        staging.mkdir(exist_ok=True)
        try:
            yield staging
        except BaseException:
            if not has_checkpoints(staging / CHECKPOINTS):
                discard(staging)
            raise
        _put_in_place(staging, out)


def find_unfinished(folder: Path) -> Path:
    """The `out` of the unfinished run that `folder` names, by its own name or by the one it will have.

    Raises: OutputError when there is none to go on with.
    """
    out = folder.with_name(folder.name.removesuffix(UNFINISHED))
    if has_checkpoints(unfinished(out) / CHECKPOINTS):
        return out
    if is_finished(out):
        _clear(out)
        raise OutputError(f"{out}: finished, nothing to resume", fix=f'autoft chat {out} -p "..." talks to it')
    if unfinished(out).is_dir():
        raise OutputError(f"{unfinished(out)}: has no checkpoint to go on from", fix="start again with autoft run")
    raise OutputError(f"{folder}: no unfinished run there", fix="name the folder that autoft run was writing to")


@contextmanager
def unfinished_folder(out: Path) -> Iterator[Path]:
    """The folder of a run to go on with, which becomes `out` when the block ends well.

    Raises: OutputError when another run is writing there.
    """
    with exclusive(out):
        for pattern in LITTER:
            for path in filter(Path.is_file, unfinished(out).glob(pattern)):
                path.unlink()
        yield unfinished(out)
        _put_in_place(unfinished(out), out)


def is_being_written(out: Path) -> bool:
    """Whether a process holds the run's lock. A free one is taken for a moment: there is no other way to ask."""
    if not _lock(out).exists():
        return False
    lock = FileLock(_lock(out))
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):  # held, or another user's
        return True
    lock.release()
    return False


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Nobody else writes the run to `out` while the block runs. Raises: OutputError when another run does."""
    lock = FileLock(_lock(out))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(
            f"{out}: another autoft run is writing there", fix="wait for it, or -o another folder"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()  # while it is ours: released, it may be another's already
        lock.release()


def _lock(out: Path) -> Path:
    return out.with_name(f".{out.name}.lock")


def _put_in_place(staging: Path, out: Path) -> None:
    """Rename, and only then remove what a run is resumed from.

    Raises: Resumable when the disk does not let it, or somebody has put files where the run is to go.
    """
    old = _replaced(out)
    try:
        check_ours(out)
    except OutputError as error:
        raise Resumable(error.what, fix=f"move that elsewhere, then autoft resume {out}") from None
    try:
        for path in staging.iterdir():
            if path.is_file():
                sync(path)
        sync(staging)
        if out.exists():
            discard(old)
            out.rename(old)
        staging.rename(out)
    except OSError as error:
        raise Resumable(
            f"{staging}: whole, but not renamed to {out.name}: {error.strerror or error}", fix=f"autoft resume {out}"
        ) from error
    with suppress(OSError):
        sync(out.parent)
    _clear(out)


def _replaced(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def _clear(out: Path) -> None:
    """Remove what only an unfinished run needs, and the run that it has replaced."""
    discard(_replaced(out))
    for part in (CHECKPOINTS, WORK, RUN):
        discard(out, part)


def _nearest_existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _is_writable(folder: Path) -> bool:
    """Tried, not asked: permissions, read-only mounts and quotas all show."""
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
