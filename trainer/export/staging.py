"""Writing an export aside: a folder beside the target, renamed only when all of it was written and loaded again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from autoft.errors import OutputError
from autoft.home import share
from autoft.schema import object_in
from autoft.trainer.storage.checkpoint import sync
from autoft.trainer.storage.run_folder import check_disk

RECORD = "autoft_export.json"  # in every folder that is exported
MARK = ".autoft-export"  # in every folder that is written aside


def check_target(out: Path, *, is_folder: bool, force: bool) -> None:
    """Refuse a target that must not be written over. Changes nothing.

    Raises: OutputError.
    """
    if is_folder and (out.is_file() or out.is_symlink()):
        raise OutputError(f"{out}: a file or link, not a folder", fix="-o another folder")
    if not is_folder and (out.is_dir() or out.is_symlink()):
        raise OutputError(f"{out}: a folder or link, not a file", fix="-o a file name")
    if is_folder and out.is_dir() and any(out.iterdir()):
        if Path.cwd().is_relative_to(out.resolve()):
            raise OutputError(f"{out}: the folder that you are in", fix="-o a new folder")
        if "autoft_version" not in object_in(out / RECORD):
            raise OutputError(f"{out}: a folder with other files in it", fix="-o a new or empty folder")
        if not force:
            raise OutputError(f"{out}: holds an export", fix="-o another folder, or --force to replace it")
    if not is_folder and out.exists() and not force:
        raise OutputError(f"{out}: is there already", fix="-o another file, or --force to write over it")


@contextmanager
def written_aside(out: Path, *, is_folder: bool, force: bool, needed_bytes: int) -> Iterator[Path]:
    """A folder beside `out` to write in; when the block ends well, it, or the file `out.name` in it, becomes `out`.

    A process that is killed in the block leaves `out` as it was; what it wrote aside is removed by the next export to
    `out`. What is written over is moved away first, and moved back if the next export finds it so.
    needed_bytes: of the disk, at most, while the block runs.
    Raises: OutputError when `check_target` does, the disk is too small, or another export writes to `out`.
    """
    check_target(out, is_folder=is_folder, force=force)
    check_disk(out, needed_bytes, "the export")
    out.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (out.with_name(f".{out.name}.{end}") for end in ("exporting", "replaced"))
    with _locked(out):
        if old.exists() and not out.exists():
            old.rename(out)  # an export was killed between two renames
        _remove(aside)
        aside.mkdir()
        (aside / MARK).touch()
        try:
            yield aside
            _finish(aside, out, old, is_folder=is_folder)
        except BaseException:
            _remove(aside)
            raise


def files_of(path: Path) -> dict[str, int]:
    """Bytes of each file of an export, by its name in the folder, or the one file itself."""
    if path.is_file():
        return {path.name: path.stat().st_size}
    names = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    return {name: file.stat().st_size for name, file in names.items() if name != MARK}


def _finish(aside: Path, out: Path, old: Path, *, is_folder: bool) -> None:
    for path in (path for path in aside.rglob("*") if path.is_file()):
        share(path)  # safetensors writes files that the user alone may read
        sync(path)
    if not is_folder:
        (aside / out.name).replace(out)
        _remove(aside)
        return
    sync(aside)
    if out.exists():
        out.rename(old)
    aside.rename(out)
    (out / MARK).unlink()  # only now: a folder written aside without it would be somebody else's
    with suppress(OSError):
        sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _remove(aside: Path) -> None:
    if not aside.exists():
        return
    if not (aside / MARK).is_file() and any(aside.iterdir()):
        raise OutputError(f"{aside}: not autoft's, and it has to write there", fix="move it, or -o another name")
    for path in aside.iterdir():  # the mark last, so that a removal that is killed can go on
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    shutil.rmtree(aside)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"{out}: another export is writing there", fix="wait for it, or -o another name") from None
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()
