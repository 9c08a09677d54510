"""One run: load, rehearse, evaluate, train, evaluate again, save. What has a checkpoint can be taken up again."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.errors import (
    AutoftError,
    Interrupted,
    OptionError,
    OutOfMemory,
    OutputError,
    Resumable,
    TrainingError,
    first_line,
    some,
)
from autoft.home import write_text
from autoft.profiles.detect import detect
from autoft.trainer.data.prepare import Prepared
from autoft.trainer.evaluation.metrics import better
from autoft.trainer.evaluation.open_adapter import check_base, put_weights
from autoft.trainer.events import Evaluated, Event, Finished, Listener, Note, Rehearsed, Resumed, Stage, Stopped
from autoft.trainer.events import Progress as Done
from autoft.trainer.job import Job
from autoft.trainer.loop.mlflow_model import log_model
from autoft.trainer.loop.probe_step import rehearse
from autoft.trainer.loop.trackers import check_trackers, trackers
from autoft.trainer.result import Evaluation, Predicted, RunResult
from autoft.trainer.run.fingerprint import changes, identity_of
from autoft.trainer.run.finish import finish, written_params
from autoft.trainer.run.hosts import Hosts
from autoft.trainer.run.launcher import Peers
from autoft.trainer.run.preflight import check_room, preflight
from autoft.trainer.run.setup import Loaded, adapter_to_continue, find_sources, load
from autoft.trainer.runtime.energy import energy_meter
from autoft.trainer.runtime.peak_memory import PeakMemory, is_device_lost, is_out_of_memory
from autoft.trainer.runtime.signals import StopRequest, StopRequested, let_go_of_lost_outputs, listening
from autoft.trainer.storage import run_index
from autoft.trainer.storage.checkpoint import (
    Checkpoint,
    checkpoint_path,
    digest_of_values,
    newest_checkpoint,
    open_checkpoint,
    set_aside,
)
from autoft.trainer.storage.checkpoint_manager import Keeper
from autoft.trainer.storage.claims import Claim, claimed, devices_of
from autoft.trainer.storage.event_log import EVENTS, Recorder
from autoft.trainer.storage.ownership import CHECKPOINTS, NOT_FINITE, RUN, WORK, about_run
from autoft.trainer.storage.places import without_paths, write_places
from autoft.trainer.storage.progress import Progress
from autoft.trainer.storage.run_folder import output_folder, unfinished, unfinished_folder
from autoft.trainer.storage.runs import entry_of_job

if TYPE_CHECKING:
    from autoft.trainer.loop.engine import Engine


def run(
    job: Job,
    out: Path,
    *,
    plan_toml: str,
    predicted: Predicted | None = None,
    prepared: Prepared | None = None,
    force: bool = False,
    gpus: Sequence[str] = (),
    hosts: Hosts | None = None,
    listener: Listener = lambda _: None,
) -> RunResult:
    """Train `job` and write the folder `out`.

    plan_toml: text of the plan.toml that goes with the run. prepared: the job's data, if the caller has it already.
    gpus: of a job for several, as `Peers` has them; this process sees the first of them only. hosts: the processes
    that a launcher has started beside this one.
    Raises: InputError of many kinds before training; TrainingError when training goes wrong; Resumable when it stopped
    and can be taken up again; Interrupted when it was stopped before there was anything to take up. `out` is then as
    it was, and what there is of the run is beside it.
    """
    peak = None if predicted is None else predicted.peak_bytes
    with (
        output_folder(out, force=force) as folder,
        claimed(out, devices_of(job, gpus), peak) as others,
        listening() as stop,
        _peers(gpus, hosts, stop) as peers,
    ):
        about = {"run_id": uuid.uuid4().hex, "started_in": str(Path.cwd())}
        _write_about(folder, about, predicted)
        write_places(folder, job)
        write_text(folder / "plan.toml", plan_toml)
        tell = _Telling(folder, job, listener)
        session = _Session(job, out, folder, about["run_id"], predicted, stop, tell, peers, others, force=force)
        return _told(session, lambda: _run(session, prepared, None))


def resume(
    out: Path,
    job: Job,
    *,
    accept_changes: bool = False,
    new_plan: tuple[str, Predicted] | None = None,
    gpus: Sequence[str] = (),
    hosts: Hosts | None = None,
    listener: Listener = lambda _: None,
) -> RunResult:
    """Take up the run to `out` where its newest whole checkpoint is. job: of its plan.toml, or of `new_plan`.

    accept_changes: go on although data, plan or versions are not what they were. new_plan: for another number of
    processes, text and prediction of the plan that takes the place of the run's. gpus, hosts: as `run` has them.
    Raises: as `run`; OutputError when there is no whole checkpoint; OptionError when something has changed.
    """
    about = about_run(unfinished(out))
    known = about.get("predicted")
    predicted = None if known is None else Predicted.from_dict(known)
    if new_plan is not None:
        predicted = new_plan[1]
    peak = None if predicted is None else predicted.peak_bytes
    with (
        unfinished_folder(out) as folder,
        claimed(out, devices_of(job, gpus), peak) as others,
        listening() as stop,
        _peers(gpus, hosts, stop) as peers,
    ):
        checkpoint, skipped = newest_checkpoint(folder / CHECKPOINTS, run_id=about.get("run_id"))
        if checkpoint is None:
            raise OutputError(f"{folder}: no whole checkpoint: {skipped[0]}", fix="start again with autoft run --force")
        set_aside(folder / CHECKPOINTS, after=checkpoint.step)
        if new_plan is not None:
            _write_about(folder, {name: about.get(name) for name in ("run_id", "started_in")}, predicted)
            write_text(folder / "plan.toml", new_plan[0])
        tell = _Telling(folder, job, listener)
        tell(Resumed(step=checkpoint.step, skipped=tuple(skipped)))
        session = _Session(
            job,
            out,
            folder,
            checkpoint.run_id,
            predicted,
            stop,
            tell,
            peers,
            others,
            accept_changes=accept_changes,
            force=True,
        )
        return _told(session, lambda: _run(session, None, checkpoint))


def _write_about(folder: Path, about: dict[str, Any], predicted: Predicted | None) -> None:
    """Write what `about_run` reads. about: run_id and started_in."""
    values = {**about, "predicted": None if predicted is None else predicted.to_dict()}
    write_text(folder / RUN, json.dumps({**values, "sha256": digest_of_values(values)}))


def _peers(gpus: Sequence[str], hosts: Hosts | None, stop: StopRequest) -> AbstractContextManager[Peers | Hosts]:
    """The other processes: to be started, or there already, and ended by whoever began to meet them."""
    if hosts is None:
        return Peers(gpus)
    hosts.gpus = gpus
    hosts.stopped_by(stop)
    return nullcontext(hosts)


def _told(session: _Session, go: Callable[[], RunResult]) -> RunResult:
    """What `go` gives. What ends it before its time is told as what it means for the run."""
    try:
        return go()
    except StopRequested as asked:
        raise session.ended(f"stopped by {asked}", asked) from None
    except OutOfMemory as error:
        raise session.ended(error.what, error) from error
    except TrainingError as error:
        session.tell(Stopped(step=session.progress.step, reason=error.what, resumable=False))
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        lost = session.peers.lost()
        if lost is not None:
            raise session.ended(lost, error) from error
        reason = first_line(error)
        if is_out_of_memory(error):
            raise session.ended(f"out of memory on {session.job.device}: {reason}", error) from error
        if is_device_lost(error):
            raise session.ended(f"the GPU does not answer any more: {reason}", error) from error
        if isinstance(error, OSError):
            raise session.ended(f"the disk does not take what is written: {reason}", error) from error
        raise


@dataclass(slots=True)
class _Session:
    """One process's part of a run. others: that use the device. accept_changes: as `resume` has it; force: as `run`."""

    job: Job
    out: Path
    folder: Path
    run_id: str
    predicted: Predicted | None
    stop: StopRequest
    tell: _Telling
    peers: Peers | Hosts
    others: Sequence[Claim] = ()
    accept_changes: bool = False
    force: bool = False
    progress: Progress = field(default_factory=Progress)

    @property
    def peak_bytes(self) -> int | None:
        """Of the plan."""
        return None if self.predicted is None else self.predicted.peak_bytes

    def ended(self, reason: str, error: BaseException) -> AutoftError:
        """The error for a run that ends before its time, for `reason`."""
        kept, _ = newest_checkpoint(self.folder / CHECKPOINTS, run_id=self.run_id)
        # while it loads, a run that is taken up again is not yet where it was
        step = max(self.progress.step, 0 if kept is None else kept.step)
        self.tell(Stopped(step=step, reason=reason, resumable=kept is not None))
        if kept is not None:
            return Resumable(f"{reason}; the state after step {kept.step} is kept", fix=f"autoft resume {self.out}")
        if isinstance(error, StopRequested):
            return Interrupted(f"{reason}: {self.out} was not written", fix="run again to start over")
        if is_out_of_memory(error) or isinstance(error, OutOfMemory):
            return OutOfMemory(
                reason,
                fix="--set micro_batch=1, --set gradient_checkpointing=true, --method qlora or a shorter --seq-len",
            )
        return TrainingError(reason, fix="fix the cause, then run the same command again")

    def tick(self, done: int, total: int) -> None:
        self.tell(Done(done=done, total=total))


class _Telling:
    """Tells the listener and the record."""

    def __init__(self, folder: Path, job: Job, listener: Listener) -> None:
        self.listener = listener
        # that the record cannot be written is told and not recorded
        self.record = Recorder(
            folder / EVENTS,
            lambda text: self._show(Note(text=text, warning=True)),
            lambda event: without_paths(event, job),
        )

    def __call__(self, event: Event) -> None:
        self.record(event)
        self._show(event)

    def warn(self, text: str) -> None:
        self(Note(text=text, warning=True))

    def _show(self, event: Event) -> None:
        try:
            self.listener(event)
        except (OSError, SystemExit):  # whoever was looking is gone (rich exits for that): that ends no run
            let_go_of_lost_outputs()


def _run(session: _Session, prepared: Prepared | None, checkpoint: Checkpoint | None) -> RunResult:
    """From loading to the whole folder. checkpoint: what to go on from."""
    began = time.perf_counter()
    job, folder, progress = session.job, session.folder, session.progress
    with progress.stage("load"):
        loaded = _load(session, prepared, begins=checkpoint is None)
    identity = identity_of(job, loaded.prepared, loaded.weights)
    if checkpoint is not None:
        _check_same(session, checkpoint, identity)
        identity["adapter_sha256"] = checkpoint.identity.get("adapter_sha256")  # of the file that it began with
    check_room(job, folder, written_params(loaded.model, job.recipe))
    with PeakMemory(job.device, loaded.baseline_bytes) as memory, _energy(session):
        keeper = Keeper(folder, job, session.progress, run_id=session.run_id, identity=identity, listener=session.tell)
        engine = _engine(session, loaded, keeper, memory)
        checkpoint = _begin(session, engine, keeper, checkpoint)
        session.stop.resumable = True
        with suppress(OSError):  # a home that cannot be written to is no reason not to run
            run_index.add([entry_of_job(session.run_id, session.out, job)])
        session.peers.join(checkpoint, job, identity["data_sha256"], session.stop.check)
        with progress.stage("rehearse"), _rows_named(session, loaded):
            _rehearse(session, loaded, engine, checkpoint, memory)
        with progress.stage("evaluate_before"):
            before, answers_before = _before(session, loaded)
        with progress.stage("train"), _rows_named(session, loaded):
            _train(session, engine, checkpoint, memory)
        with progress.stage("evaluate_after"):
            after, answers_after = _evaluate(session, loaded, "after", job.max_new_tokens)
    with progress.stage("save"):
        session.tell(Stage(name="save"))
        result = finish(
            job, loaded, progress, session.predicted, (before, answers_before), (after, answers_after),
            folder=folder, name=session.out.name, run_id=session.run_id, identity=identity,
        )  # fmt: skip
        if "mlflow" in job.report_to:
            log_model(job, folder, loaded.model, loaded.prepared.tokenizer, loaded.weights, session.tell.warn)
    session.tell(Finished(steps=result.steps, seconds=round(time.perf_counter() - began, 2)))
    return result


@contextmanager
def _energy(session: _Session) -> Iterator[None]:
    """What the GPUs draw in the block is measured."""
    if session.job.device != "cuda":
        yield
        return
    with energy_meter(session.peers.gpus) as take_joules, session.progress.energy(take_joules):
        yield


def _load(session: _Session, prepared: Prepared | None, *, begins: bool) -> Loaded:
    """Whatever can refuse the job is asked here; the other processes load what was found to be good.

    begins: with the weights of the adapter that is to be continued; those of a checkpoint come later.
    """
    from autoft.trainer.model.build import without_adapter
    from autoft.trainer.model.stream import slow_copies

    job, tell = session.job, session.tell
    check_trackers(job)
    adapter = adapter_to_continue(job) if begins else None
    for note in preflight(
        job,
        predicted_bytes=session.peak_bytes,
        host_bytes=None if session.predicted is None else session.predicted.host_bytes,
        hardware=detect(session.folder),
        others=session.others,
        force=session.force,
    ):
        tell(Note(text=note, warning=True))
    sources = find_sources(job, tell, prepared)
    if adapter is not None:
        check_base(adapter, sources.ref, sources.weights)
    session.peers.start(job, predicted_bytes=session.peak_bytes, force=session.force)
    loaded = load(job, sources, session.stop.check, session.peers.shared_host(job))
    slow = slow_copies(without_adapter(loaded.model))
    if slow is not None:
        tell(Note(text=slow, warning=True))
    if adapter is not None:
        put_weights(adapter, loaded.model)
    return loaded


def _check_same(session: _Session, checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    differences = changes(checkpoint.identity, identity)
    if differences and not session.accept_changes:
        raise OptionError(
            f"{session.out}: not what it was: {'; '.join(differences)}",
            fix="restore it, or --accept-changes to continue, but not bit for bit",
        )
    for change in differences:
        session.tell(Note(text=f"accepted: {change}", warning=True))
    before, now = checkpoint.identity["job"].get("num_gpus", 1), session.job.num_gpus
    if before != now:
        text = f"{now} processes instead of {before}: each step trains on the same rows, rounding and dropout differ"
        session.tell(Note(text=text))


def _engine(session: _Session, loaded: Loaded, keeper: Keeper, memory: PeakMemory) -> Engine:
    from autoft.trainer.loop.callbacks import Watch
    from autoft.trainer.loop.engine import Engine

    watch = Watch(session.tell, memory, session.progress)
    watch.engine = Engine(
        model=loaded.model,
        tokenizer=loaded.prepared.tokenizer,
        job=session.job,
        examples=loaded.prepared.train.examples,
        work_dir=session.folder / WORK,
        keeper=keeper,
        progress=session.progress,
        watch=watch,
        stop=session.stop,
        listener=session.tell,
        evaluate=lambda step: _during(session, loaded, step),
        trackers=trackers(session.job, session.folder, session.tell.warn),
        group=session.peers.group,
    )
    engine: Engine = watch.engine
    return engine


def _begin(session: _Session, engine: Engine, keeper: Keeper, checkpoint: Checkpoint | None) -> Checkpoint:
    """The checkpoint to train from; a new run writes its first, which shows that the disk takes one."""
    if checkpoint is not None:
        keeper.latest = checkpoint
        engine.resume(checkpoint)
        session.progress.events.append({"event": "resumed", "step": checkpoint.step})
        return checkpoint
    if not engine.save() or keeper.latest is None:
        raise OutputError(
            f"{keeper.folder}: no checkpoint can be written there: {keeper.trouble}",
            fix="free some room, or -o a folder on another disk",
        )
    return open_checkpoint(keeper.latest.folder, run_id=session.run_id)


def _rehearse(session: _Session, loaded: Loaded, engine: Engine, checkpoint: Checkpoint, memory: PeakMemory) -> None:
    """The step with the most memory, before an hour is spent; then all is as it was, by the way a resumed run takes."""
    session.tell(Stage(name="rehearse", detail="the longest rows"))
    began = time.perf_counter()
    tokens, peak = rehearse(engine, checkpoint, memory)
    session.progress.saw_peak("rehearse", peak)
    _rehearse_evaluation(session, loaded, peak)
    session.progress.saw_peak("evaluate", memory.take_peak())
    session.tell(
        Rehearsed(
            micro_batch=engine.fallbacks.micro_batch,
            tokens=tokens,
            peak_bytes=peak,
            predicted_bytes=session.peak_bytes,
            seconds=round(time.perf_counter() - began, 2),
        )
    )
    session.stop.check()


def _rehearse_evaluation(session: _Session, loaded: Loaded, peak_bytes: int) -> None:
    from autoft.trainer.evaluation.evaluate import evaluate_longest

    evaluate_longest(
        loaded.model,
        loaded.prepared.tokenizer,
        loaded.prepared.splits.heldout,
        loaded.prepared.heldout,
        session.job.recipe,
        max_new_tokens=session.job.max_new_tokens,
        peak_bytes=peak_bytes,
        tell=session.tell.warn,
    )


def _before(session: _Session, loaded: Loaded) -> tuple[Evaluation, list[str]]:
    """The evaluation before training; a run that is taken up again has it already."""
    known = session.progress.before
    if known is not None:
        return Evaluation.from_dict(known["evaluation"]), known["answers"]
    before, answers = _evaluate(session, loaded, "before", session.job.max_new_tokens)
    session.progress.before = {"evaluation": before.to_dict(), "answers": answers}
    return before, answers


def _during(session: _Session, loaded: Loaded, step: int) -> bool:
    """Evaluate after `step`; whether to stop early."""
    job, progress = session.job, session.progress
    evaluation, _ = _evaluate(session, loaded, "during", 0 if job.metric == "loss" else job.max_new_tokens)
    value = getattr(evaluation, job.metric)
    if value is None:
        raise TrainingError(
            f"the evaluation has no {job.metric}: the held-out rows are not of that kind", fix="--set metric=loss"
        )
    best = next((getattr(known, job.metric) for at, known in progress.evaluated() if at == progress.best_step), None)
    progress.evaluations.append((step, evaluation.to_dict()))
    is_better = better(job.metric, value, best)
    progress.best_step = step if is_better else progress.best_step
    progress.since_best = 0 if is_better else progress.since_best + 1
    session.tell(Evaluated(when="during", step=step, evaluation=evaluation, best=is_better))
    return job.early_stopping is not None and progress.since_best >= job.early_stopping


def _train(session: _Session, engine: Engine, checkpoint: Checkpoint, memory: PeakMemory) -> None:
    job, progress = session.job, session.progress
    session.tell(Stage(name="train", detail=f"{engine.num_rows:,} rows"))
    memory.take_peak()
    try:
        if not progress.is_done(job):
            engine.train_on(checkpoint)
        if progress.step == progress.total_steps:
            engine.compare_weights()
    except (StopRequested, OutOfMemory):
        engine.save()  # neither comes in the midst of an update
        raise
    finally:
        progress.saw_peak("train", memory.take_peak())
        progress.saw_reserved(memory.peak_reserved_bytes)
    if not progress.losses:
        raise TrainingError("no optimizer step was made", fix="more rows or epochs")
    engine.save()
    if progress.best_step not in (None, progress.step):
        best = checkpoint_path(session.folder / CHECKPOINTS, progress.best_step)
        engine.take_weights(open_checkpoint(best, run_id=session.run_id))
        session.tell(Note(text=f"the weights of step {progress.best_step} are kept: the best by {job.metric}"))


@contextmanager
def _rows_named(session: _Session, loaded: Loaded) -> Iterator[None]:
    """A loss or gradient that is no number is told with the rows that gave it, and these are saved."""
    try:
        yield
    except TrainingError as error:
        examples = getattr(error, "examples", None)
        if examples is None:
            raise
        prepared = loaded.prepared
        places = prepared.places(examples, session.job.recipe.seq_len)
        rows = [
            {"where": where, "text": prepared.tokenizer.decode(prepared.train.examples[at].input_ids)}
            for at, where in zip(examples, places, strict=True)
        ]
        path = session.folder / NOT_FINITE
        with suppress(OSError):
            write_text(path, json.dumps({"what": error.what, "rows": rows}, indent=2, ensure_ascii=False))
        shown = some(places)
        raise TrainingError(f"{error.what}; rows: {shown} (texts in {path})", fix=error.fix) from error


def _evaluate(session: _Session, loaded: Loaded, when: str, max_new_tokens: int) -> tuple[Evaluation, list[str]]:
    from autoft.trainer.evaluation.evaluate import evaluate

    details = {"before": "before training", "during": f"after step {session.progress.step}", "after": "after training"}
    session.tell(Stage(name="evaluate", detail=details[when]))
    evaluation, answers = evaluate(
        loaded.model,
        loaded.prepared.tokenizer,
        loaded.prepared.splits.heldout,
        loaded.prepared.heldout,
        session.job.recipe,
        max_new_tokens=max_new_tokens,
        stop=loaded.stop_ids,
        peak_bytes=session.progress.phases.get("rehearse"),
        tick=session.tick,
        tell=session.tell.warn,
        check=session.stop.check,
    )
    if when != "during":  # then it is told with whether it is the best
        session.tell(Evaluated(when=when, step=session.progress.step, evaluation=evaluation))
    return evaluation, answers
