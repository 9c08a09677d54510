"""`autoft watch`: follow a run from another terminal, by the record that it writes."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from autoft import render
from autoft.cli import options
from autoft.errors import AutoftError, OptionError, near
from autoft.trainer.events import Finished, Saved, Step, Stopped
from autoft.trainer.storage.event_log import EVENTS, Recorded, read_from
from autoft.trainer.storage.ownership import RESULT
from autoft.trainer.storage.run_folder import UNFINISHED, is_being_written, unfinished

LOOK_EVERY_S = 0.5
QUIET_S = 1.0  # without news for so long, a run is asked whether it lives
RESUMABLE = 4


@options.command(
    "Follow a run from another terminal; Ctrl-C leaves the run alone.\n\n"
    "DIR is a run's folder, or a folder of runs, whose newest is followed (default: runs). With --json, each event is "
    "a line. Exits with 0 if the run has finished, 4 if it can be resumed, 1 if it died.",
    examples=("autoft watch", "autoft watch my-adapter", "autoft watch my-adapter --json"),
)
@click.argument("where", metavar="[DIR]", default="runs", type=click.Path(path_type=Path))
def command(where: Path, as_json: bool) -> int:
    run = Run(find(where))
    try:
        if as_json:
            return _follow_as_json(run)
        return _follow(run)
    except KeyboardInterrupt:
        return 0


class Run:
    """The run that becomes the folder `out`, and how far its record is read."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.step = 0
        self.last: Recorded | None = None
        self.has_checkpoint = False
        self._offset = 0

    def news(self) -> list[Recorded]:
        """What was recorded since the last look."""
        folder = unfinished(self.out) if unfinished(self.out).exists() else self.out
        try:
            events, self._offset = read_from(folder / EVENTS, self._offset)
        except FileNotFoundError:  # not begun, or renamed just now
            return []
        for each in events:
            self._learn(each)
        return events

    def is_finished(self) -> bool:
        """Also where the record could not be written to its end."""
        if self.last is not None and isinstance(self.last.event, Finished):
            return True
        return not unfinished(self.out).exists() and (self.out / RESULT).exists()

    def end(self) -> int:
        """The exit code of a run that is over.

        Raises: AutoftError when it died.
        """
        if self.is_finished():
            return 0
        if self.last is not None and isinstance(self.last.event, Stopped):
            return RESUMABLE if self.last.event.resumable else 1
        at = f"at step {self.step:,}" if self.step else "before its first step"
        can_resume = self.has_checkpoint and unfinished(self.out).exists()
        raise AutoftError(
            f"{self.out}: the run ended {at} and did not say why: killed, or failed with an error in its own terminal",
            fix=f"autoft resume {self.out}" if can_resume else "start it again with autoft run",
        )

    def _learn(self, recorded: Recorded) -> None:
        self.last = recorded
        if isinstance(recorded.event, Step):
            self.step = recorded.event.step
        elif isinstance(recorded.event, Saved):
            self.has_checkpoint = True


def find(where: Path) -> Path:
    """The output folder, finished or not, of the run that `where` means.

    Raises: OptionError when there is none.
    """
    if where.name in ("", ".."):
        where = where.resolve()
    out = _out(where)
    if _is_run(out):
        return out
    if not where.is_dir():
        names = [_out(path).name for path in _folders(where.parent)]
        raise OptionError(f"{where}: no such run.{near(out.name, names)}", fix="the folder that autoft run names")
    runs = {_out(path) for path in _folders(where)}
    folders = [run for run in runs if _is_run(run)]
    if not folders:
        raise OptionError(f"{where}: no run in it", fix="autoft watch DIR, with the folder that autoft run names")
    return max(folders, key=_last_written)


def _follow(run: Run) -> int:
    from autoft.cli.live import Display

    with Display(render.console()) as display:

        def show(recorded: Recorded) -> None:
            if recorded.event is not None:
                display.tell(recorded.event, _seconds(recorded.at))

        _until_over(run, show, lambda: display.broken)
    if display.broken:
        return 0
    code = run.end()
    if code == RESUMABLE:
        print(f"Go on with: autoft resume {run.out}")
    return code


def _follow_as_json(run: Run) -> int:
    try:
        _until_over(run, lambda recorded: print(recorded.line, flush=True), lambda: False)
    except BrokenPipeError:  # the reader has seen enough; nothing is left to flush into
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return run.end()


def _until_over(run: Run, show: Callable[[Recorded], None], enough: Callable[[], bool]) -> None:
    heard_at = time.monotonic()
    while not enough():
        is_quiet = time.monotonic() - heard_at >= QUIET_S
        # asked first: what came until then is read below
        is_over = run.is_finished() or (is_quiet and not is_being_written(run.out))
        news = run.news()
        for recorded in news:
            show(recorded)
        if is_over and not news:
            return
        if news or is_quiet:
            heard_at = time.monotonic()
        if not news:
            time.sleep(LOOK_EVERY_S)


def _is_run(out: Path) -> bool:
    if not out.name:  # the root of all
        return False
    return unfinished(out).is_dir() or (out / EVENTS).is_file() or (out / RESULT).is_file()


def _out(folder: Path) -> Path:
    return folder.with_name(folder.name.removesuffix(UNFINISHED)) if folder.name else folder


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []


def _last_written(out: Path) -> float:
    """When its record was last written to, or its folder where it has none yet."""
    times = [0.0]
    for path in (unfinished(out) / EVENTS, unfinished(out), out / EVENTS, out):
        if path.exists():
            times.append(path.stat().st_mtime)
    return max(times)


def _seconds(at: str) -> float:
    try:
        return datetime.datetime.fromisoformat(at).timestamp()
    except ValueError:
        return time.time()
