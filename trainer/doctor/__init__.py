"""The doctor: what ruins an evening, each checked by doing it, each with its fix. No torch in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from autoft.home import home
from autoft.profiles.hardware import Hardware
from autoft.profiles.host import hub_cache
from autoft.trainer.compat.tested import TESTED
from autoft.trainer.doctor import compute, cuda, internals, places, versions
from autoft.trainer.doctor.compute import FourBit
from autoft.trainer.doctor.cuda import TorchFacts
from autoft.trainer.doctor.finding import Finding, one_line
from autoft.trainer.doctor.workers import Unanswered, Workers
from autoft.trainer.runtime import environment

Check = Callable[[], Finding]
# A first import from a slow disk, a driver that starts, a kernel that compiles: each may take a minute
START_S = 120.0
STEP_S = 300.0
AT_ONCE = 3
REPORT = "mend what else has failed; if it stays, report it with the output of `autoft doctor --json`"
FIXES = {
    "torch": f"pip install --force-reinstall torch=={TESTED['torch']}",
    "4-bit product": f"pip install --force-reinstall bitsandbytes=={TESTED['bitsandbytes']}; until then --method lora",
}
HERE = "autoft.trainer.doctor"


def examine(hardware: Hardware) -> Iterator[Finding]:
    """Every check's Finding, in a fixed order, each as soon as it and those before it are known."""
    workers = Workers()
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        todo = checks(hardware, workers, pool)
        findings = [pool.submit(guarded, name, check, FIXES.get(name, REPORT)) for name, check in todo.items()]
        for finding in findings:
            yield finding.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        workers.close()


def guarded(name: str, check: Check, fix: str) -> Finding:
    """The check's Finding, or, when the check itself fails, one that says why. fix: what to do then."""
    try:
        return check()
    except Unanswered as reason:
        return Finding(name=name, status="failed", found=str(reason), fix=fix)
    except Exception as error:  # noqa: BLE001 - a check that crashes is a line, not a traceback
        return Finding(name=name, status="failed", found=f"the check crashed: {one_line(error)}", fix=fix)


def checks(hardware: Hardware, workers: Workers, pool: ThreadPoolExecutor) -> dict[str, Check]:
    """Name and check, in the order in which they are shown. What several need is asked once, in `pool`, from now on."""
    on_bus = cuda.cards_on_the_bus()
    cache, cache_setting = hub_cache()
    facts = pool.submit(lambda: TorchFacts.from_dict(workers.ask(f"{HERE}.cuda:torch_facts", timeout_s=START_S)))
    packed = pool.submit(lambda: FourBit.from_dict(workers.ask(f"{HERE}.compute:four_bit", timeout_s=START_S)))

    def of_torch(name: str, rule: Callable[[TorchFacts, Hardware], Finding]) -> Check:
        return lambda: rule(facts.result(), hardware) if _known(facts) else _without(name, "torch")

    return {
        "driver": lambda: cuda.driver(hardware, on_bus),
        "torch": lambda: cuda.torch_build(facts.result(), hardware, on_bus),
        "driver for this CUDA": of_torch("driver for this CUDA", cuda.driver_for_cuda),
        "kernels for the card": of_torch("kernels for the card", cuda.kernels),
        "CUDA": of_torch("CUDA", cuda.cuda_starts),
        "4-bit product": lambda: compute.usual_width(packed.result()),
        "4-bit, odd widths": lambda: (
            compute.odd_width(packed.result()) if _known(packed) else _without("4-bit, odd widths", "the 4-bit product")
        ),
        "Triton": lambda: _without("Triton", "CUDA") if _no_cuda(facts) else triton(hardware, workers),
        "NCCL": lambda: nccl(hardware, workers),
        "training step": lambda: training_step(workers),
        "tested versions": lambda: versions.tested_set(versions.installed(TESTED), TESTED),
        "internals": lambda: internals.as_tested(
            workers.ask(f"{HERE}.internals:examine_internals", timeout_s=START_S), versions.installed(TESTED)
        ),
        "requirements": lambda: versions.requirements("autoft", *TESTED),
        "companions": lambda: versions.companions(workers.ask(f"{HERE}.versions:import_companions", timeout_s=START_S)),
        "AUTOFT_HOME": lambda: places.folder("AUTOFT_HOME", home(), places.OWN_ROOM_BYTES),
        "HF_HOME": lambda: places.folder("HF_HOME", cache, places.HF_ROOM_BYTES, cache_setting),
        "hub": lambda: hub(workers),
        "token": places.token,
    }


def _known(answer: Future[TorchFacts] | Future[FourBit]) -> bool:
    return answer.exception() is None


def _no_cuda(facts: Future[TorchFacts]) -> bool:
    """Whether CUDA does not start: then Triton's error would be the same one, and its remedy another."""
    return _known(facts) and facts.result().error is not None


def _without(name: str, missing: str) -> Finding:
    return Finding(name=name, status="skipped", found=f"cannot be told: {missing} failed")


def triton(hardware: Hardware, workers: Workers) -> Finding:
    """A Triton kernel compiles, runs and is right."""
    name = "Triton"
    if not hardware.gpus:
        return Finding(name=name, status="skipped", found="not needed here: training runs on the CPU")
    try:
        version = workers.ask(f"{HERE}.compute:triton_kernel", timeout_s=START_S)
    except Unanswered as reason:
        return Finding(name=name, status="failed", found=str(reason), fix=compute.triton_fix(str(reason)))
    return Finding(name=name, status="ok", found=f"{version} compiles a kernel and runs it")


def nccl(hardware: Hardware, workers: Workers) -> Finding:
    """Several GPUs can add up what each has."""
    name = "NCCL"
    if len(hardware.gpus) < 2:
        return Finding(name=name, status="skipped", found="not needed here: it joins several GPUs")
    try:
        version = workers.ask(f"{HERE}.compute:nccl_sum", timeout_s=START_S)
    except Unanswered as reason:
        return Finding(
            name=name,
            status="warning",
            found=str(reason),
            fix="one GPU trains without it; for several try NCCL_P2P_DISABLE=1, and --shm-size=1g in a container",
        )
    return Finding(name=name, status="ok", found=f"{version}: a sum over {len(hardware.gpus)} GPUs is right")


def training_step(workers: Workers) -> Finding:
    """The trainer's own code loads, trains and steps a tiny model with the libraries that are installed."""
    name = "training step"
    try:
        done = workers.ask(f"{HERE}.compute:training_step", timeout_s=STEP_S)
    except Unanswered as reason:
        fix = "mend the lines above and below first; if all are well, install the tested versions"
        return Finding(name=name, status="failed", found=str(reason), fix=fix)
    return Finding(name=name, status="ok", found=done)


def hub(workers: Workers) -> Finding:
    """The hub answers, or is not wanted."""
    if environment.is_offline():
        return Finding(name="hub", status="ok", found="not asked: offline, so models must be here already")
    address = places.endpoint()
    try:
        status = workers.ask(f"{HERE}.places:hub_status", address, timeout_s=6 * places.HUB_TIMEOUT_S)
    except Unanswered as reason:
        return places.hub(address, None, str(reason))
    return places.hub(address, status)
