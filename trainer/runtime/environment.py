"""Switches of the libraries that are read from the environment, set before the libraries are imported."""

from __future__ import annotations

import atexit
import functools
import gc
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from autoft.trainer.compat.torch import COMPILE, DEVICE_CAPABILITY

OFFLINE = "autoft is offline (--offline or HF_HUB_OFFLINE)"
PANIC = "PanicException"  # of Rust's libraries (tokenizers, safetensors); no Exception
NO_NETWORK = "AUTOFT_OFFLINE"  # as --offline sets it
TRUE = ("1", "ON", "YES", "TRUE")
# What a user has set stays as it is: only what is missing is filled in.
DEFAULTS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    # CUDA's own order is fastest first; NVML's, and so our probe's, is the bus's.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    # Weights one after another in a fixed order: four threads racing for memory reserve another amount every time.
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
    # torch.cuda.is_available asks NVML, not the CUDA driver: a process that has started the driver must not fork, and
    # could no longer choose its GPUs by CUDA_VISIBLE_DEVICES
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # From Hopper on PyTorch prefers cuDNN's attention, whose workspace no source gives
    "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
}


_is_ours = False  # whether this process does nothing but what autoft does


def set_defaults() -> None:
    """Private and predictable libraries. Call before torch or transformers is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if sys.platform == "linux":
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def prepare() -> None:
    """As `set_defaults`, in a process that is all ours: no warnings of libraries either, and a quick end.

    The search for cycles that Python ends with took more than a second.
    """
    set_defaults()
    global _is_ours
    _is_ours = True
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def go_offline() -> None:
    """No network from here on, in this process and those that it starts. Call before the hub's client is imported."""
    os.environ[NO_NETWORK] = os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"


def is_without_network() -> bool:
    """Whether not even the package index may be asked."""
    return bool(os.environ.get(NO_NETWORK))


def is_offline(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the user wants no hub: huggingface_hub/constants.py and datasets/config.py, where 0 and "no" mean no."""
    environ = os.environ if environ is None else environ
    hub = environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or ""
    return hub.upper() in TRUE or environ.get("HF_DATASETS_OFFLINE", "").upper() in TRUE


def import_bitsandbytes() -> None:
    """Import bitsandbytes without creating a CUDA context, which takes 300 to 500 MiB of the card and forbids forking.

    bitsandbytes 0.50 asks every GPU for its compute capability while it is imported (cuda_specs.py) and uses the answer
    in its diagnostics alone, which ask again. It gets (0, 0) here. It also hands some kernels to torch.compile, which
    imports the compiler at once, a fifth of all that a plan imports; here it does so when such a kernel is first run.
    """
    if "bitsandbytes" in sys.modules:
        return
    compile_now = COMPILE.fetch()

    def compile_later(kernel: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled = functools.cache(lambda: compile_now(kernel, **options))
        return functools.wraps(kernel)(lambda *args, **kwargs: compiled()(*args, **kwargs))

    with DEVICE_CAPABILITY.replaced_by(lambda device=None: (0, 0)), COMPILE.replaced_by(compile_later):
        import bitsandbytes  # noqa: F401


def import_libraries() -> None:
    """Import what trains: torch, bitsandbytes, transformers and peft.

    Their imports make objects by the million and hardly a cycle, and to search them took a third of the time. In a
    process that is all ours no later search goes through them either.
    """
    if "peft" in sys.modules:
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        import_bitsandbytes()
        import peft  # noqa: F401
        import transformers  # noqa: F401
    finally:
        if was_on:
            gc.enable()
    if _is_ours:
        gc.freeze()


@contextmanager
def held_stderr() -> Iterator[None]:
    """What comes to the standard error within is passed on at the end, but for a panic of a Rust library.

    Rust writes its own report of it to the descriptor, beside the exception that it raises.
    """
    try:
        saved = os.dup(2)
    except OSError:  # closed
        yield
        return
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = type(error).__name__ == PANIC
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            aside.seek(0)
            if not panicked and (held := aside.read()):
                os.write(2, held)


def hide_gpus() -> None:
    """No GPU is visible to PyTorch, in this process and those that it starts, if it has not looked for one yet."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@contextmanager
def own_choice_of_gpus() -> Iterator[None]:
    """What is chosen within by CUDA_VISIBLE_DEVICES is afterwards what it was before."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


@contextmanager
def hidden_gpus() -> Iterator[None]:
    """No GPU is visible to PyTorch within, nor afterwards in this process if PyTorch has looked for one within."""
    with own_choice_of_gpus():
        hide_gpus()
        yield


def of_child() -> dict[str, str]:
    """The environment of a Python that is to find what this one imports."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def quiet() -> None:
    """Turn off the progress bars that only their libraries' own calls turn off."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
