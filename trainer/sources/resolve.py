"""What MODEL means: a hub id, a local folder, a .gguf file, a catalogue name, or "starter".

`resolve` only looks; `load_config` reads the configuration, which is all that planning needs; `fetch` brings the
weights to a local folder in safetensors, which is what training needs.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from autoft.errors import HubError, ModelError, near
from autoft.profiles.model_catalogue import ModelProfile, find_model, model_profiles
from autoft.trainer.runtime import environment
from autoft.trainer.sources.figures import read_settings
from autoft.trainer.sources.suitable import missing_library
from autoft.trainer.sources.weights import check_weights
from autoft.trainer.storage.places import public_name

Say = Callable[[str], None]
T = TypeVar("T")

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
# A GGUF file begins with all that is not weights: settings, vocabulary, names of tensors; a few MB in large models
GGUF_HEADER_BYTES = 64 * 2**20
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WEIGHTS_TO_FETCH = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer*", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef:
    """A model that exists, as far as can be told without the network.

    name: as the user gave it. path: the folder or .gguf file of a local model. hub_id: where the weights come from.
    profile: what the catalogue knows of it.
    """

    name: str
    kind: Literal["hub", "folder", "gguf", "catalogue", "starter"]
    path: Path | None = None
    hub_id: str | None = None
    profile: ModelProfile | None = None

    @property
    def local(self) -> Path:
        """The path of a local model."""
        assert self.path is not None
        return self.path


def resolve(name: str) -> ModelRef:
    """Raises: ModelError, with the nearest known names, when `name` is none of the five."""
    if name == "starter":
        return ModelRef(name=name, kind="starter")
    path = Path(name).expanduser()
    if path.is_dir():
        return ModelRef(name=name, kind="folder", path=_checked_folder(path).absolute())
    if path.suffix == ".gguf" or path.is_file():
        return ModelRef(name=name, kind="gguf", path=_checked_gguf(path).absolute())
    profile = find_model(name)
    if profile is not None:
        return ModelRef(name=name, kind="catalogue", hub_id=profile.hub_id, profile=profile)
    if name.startswith((".", "~", "/")) or name.endswith("/"):
        raise ModelError(f"{name}: no such folder", fix="check the path")
    if HUB_ID.fullmatch(name):
        return ModelRef(name=name, kind="hub", hub_id=name)
    raise ModelError(
        f"no model {name!r}: not a folder, a .gguf file or a catalogue name.{near(name, _known_names())}",
        fix="give a hub id (owner/name), a model folder, a .gguf file, a name of `autoft profiles models`, or starter",
    )


def load_config(ref: ModelRef, weights: Path | None = None) -> Any:
    """The transformers configuration. Weights are not touched; a hub model costs one small file.

    weights: the folder that `fetch` gave; training takes the configuration beside them, not the catalogue's copy.
    Raises: ModelError when there is none, or transformers cannot read it.
    """
    from transformers import AutoConfig

    if ref.kind == "starter":
        from autoft.trainer.sources.starter import starter_folder

        return AutoConfig.from_pretrained(starter_folder(), trust_remote_code=False)
    if ref.kind == "gguf":
        where, name = ref.local.parent, ref.local.name
        return _reading(ref, lambda: AutoConfig.from_pretrained(where, gguf_file=name, trust_remote_code=False))
    if ref.profile is not None and weights is None:
        config = ref.profile.full_config
        return _reading(ref, lambda: AutoConfig.for_model(config.pop("model_type"), **config))
    folder = ref.path or weights or _hub_file(ref, "config.json").parent
    if ref.path is None:  # of a folder, `resolve` has read it
        read_settings(folder / "config.json")
    return _reading(ref, lambda: AutoConfig.from_pretrained(folder, trust_remote_code=False))


def config_source(ref: ModelRef) -> bytes | None:
    """What `load_config` reads, as it stands and without transformers; None where it might read other files besides.

    Raises: ModelError as `load_config` does when there is none.
    """
    if ref.kind == "gguf":
        with ref.local.open("rb") as file:
            return file.read(GGUF_HEADER_BYTES)
    if ref.profile is not None:
        return json.dumps(ref.profile.full_config, sort_keys=True).encode()
    if ref.kind == "starter":
        from autoft.trainer.sources.starter import starter_folder

        source = (starter_folder() / "config.json").read_bytes()
    else:
        source = (ref.path / "config.json" if ref.path else _hub_file(ref, "config.json")).read_bytes()
    # names other files, of which transformers takes the one for its version
    return None if b'"configuration_files"' in source else source


def load_tokenizer(ref: ModelRef) -> Any | None:
    """The tokenizer, or None where a folder holds only a configuration.

    Raises: ModelError when it is there and cannot be read, or the hub cannot be reached.
    """
    from transformers import AutoTokenizer

    if ref.kind == "starter":
        from autoft.trainer.sources.starter import starter_folder

        return AutoTokenizer.from_pretrained(starter_folder(), trust_remote_code=False)
    if ref.kind == "gguf":
        where, name = ref.local.parent, ref.local.name
        return _reading(ref, lambda: AutoTokenizer.from_pretrained(where, gguf_file=name, trust_remote_code=False))
    if ref.path is not None:
        if not any(
            (ref.path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
        ):
            return None
        return _reading(ref, lambda: AutoTokenizer.from_pretrained(ref.path, trust_remote_code=False))
    folder = _hub_snapshot(
        ref,
        [
            "config.json",
            "generation_config.json",
            "tokenizer*",
            "*.jinja",
            "vocab*",
            "merges.txt",
            "special_tokens_map.json",
        ],
    )
    return _reading(ref, lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def load_stops(ref: ModelRef) -> list[int]:
    """The tokens at which generation stops by the model's own settings: its generation_config.json, else its config.

    Empty where neither says so. The network is not asked: these files come with the tokenizer's.
    """
    settings: Any = None
    folder = _stops_folder(ref)
    if folder is not None:
        with suppress(OSError, ValueError):
            settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    stops = settings.get("eos_token_id") if isinstance(settings, dict) else None
    if stops is None and ref.kind != "gguf":  # whose one eos token is its tokenizer's
        config = load_config(ref)
        stops = getattr(config, "eos_token_id", None) or getattr(config.get_text_config(), "eos_token_id", None)
    return [int(stop) for stop in (stops if isinstance(stops, list | tuple) else [stops]) if stop is not None]


def _stops_folder(ref: ModelRef) -> Path | None:
    if ref.kind == "gguf":
        return None
    if ref.kind == "starter":
        from autoft.trainer.sources.starter import starter_folder

        return starter_folder()
    if ref.path is not None:
        return ref.path
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(str(ref.hub_id), "generation_config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def fetch(ref: ModelRef, say: Say = lambda _: None) -> Path:
    """A local folder with config, tokenizer and safetensors weights, downloading or converting what is not there yet.

    say: told, in a line, what takes long. Raises: ModelError.
    """
    if ref.kind == "starter":
        from autoft.trainer.sources.starter import starter_folder

        return starter_folder(say)
    if ref.kind == "gguf":
        from autoft.trainer.sources.gguf import gguf_folder

        return gguf_folder(ref.local, say)
    if ref.path is not None:
        check_weights(ref.path)
        return ref.path
    say(f"fetching {ref.hub_id} from the hub")
    folder = _hub_snapshot(ref, WEIGHTS_TO_FETCH)
    check_weights(folder)
    return folder


def fetched(ref: ModelRef) -> Path | None:
    """What `fetch` gives, where it need neither download nor convert anything; None where it would."""
    from huggingface_hub import snapshot_download

    from autoft.trainer.sources.starter import is_here, starter_folder

    with suppress(ModelError, OSError, ValueError):  # the hub's own errors are of these two
        if ref.kind == "starter":
            return starter_folder() if is_here() else None
        if ref.kind == "folder":
            return fetch(ref)
        if ref.hub_id is not None:
            folder = Path(snapshot_download(ref.hub_id, allow_patterns=WEIGHTS_TO_FETCH, local_files_only=True))
            check_weights(folder)
            return folder
    return None


def base_reference(ref: ModelRef, folder: Path) -> str:
    """What an adapter names as its base: its hub id, else the name of its folder or file, which says no path."""
    return hub_name(ref) or public_name(str(ref.path or folder))


def hub_name(ref: ModelRef) -> str | None:
    """The hub id under which the world knows the model, None for one that only this machine has."""
    from autoft.trainer.sources.starter import HUB_ID as STARTER

    return STARTER if ref.kind == "starter" else ref.hub_id


def licence(ref: ModelRef) -> str | None:
    """The model's licence where it is known."""
    return "apache-2.0" if ref.kind == "starter" else ref.profile.licence if ref.profile else None


def _known_names() -> list[str]:
    return ["starter", *model_profiles(), *(p.hub_id for p in model_profiles().values())]


def _checked_folder(path: Path) -> Path:
    config = path / "config.json"
    if not config.is_file():
        hint = " It holds an adapter: give its base model." if (path / "adapter_config.json").is_file() else ""
        raise ModelError(
            f"{path}: a folder without config.json is not a model.{hint}",
            fix="give a folder that save_pretrained wrote",
        )
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"{path}: holds a model and an adapter, and transformers would open the adapter's base instead",
            fix="move the adapter_* files to a folder of their own, and give the folder of the model",
        )
    model_type = read_settings(config).get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ModelError(f"{config}: has no model_type", fix="give the config.json of a transformers model")
    return path


def _checked_gguf(path: Path) -> Path:
    from autoft.trainer.sources.gguf import check_gguf

    check_gguf(path)
    return path


def _reading(ref: ModelRef, read: Callable[[], T]) -> T:
    try:
        with environment.held_stderr():
            return read()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != environment.PANIC:
            raise
        reason = " ".join(str(error).split())[:200]
        if "contains custom code" in reason:  # transformers/dynamic_module_utils.py, resolve_trust_remote_code
            raise ModelError(
                f"{ref.name}: the model is built by code in its folder, which autoft never runs",
                fix="a version of it that transformers knows by itself (often named ...-hf), or another model",
            ) from error
        if isinstance(error, ImportError):
            raise missing_library(ref.name, error) from error
        raise ModelError(f"{ref.name}: transformers cannot read it: {reason}", fix="check the model's files") from error


def _hub_file(ref: ModelRef, filename: str) -> Path:
    from huggingface_hub import hf_hub_download

    return _from_hub(ref, lambda: Path(hf_hub_download(str(ref.hub_id), filename)))


def _hub_snapshot(ref: ModelRef, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return _from_hub(ref, lambda: Path(snapshot_download(str(ref.hub_id), allow_patterns=patterns)))


def _from_hub(ref: ModelRef, download: Callable[[], Path]) -> Path:
    from huggingface_hub import errors

    try:
        return download()
    except errors.GatedRepoError:
        what, fix = (
            f"{ref.hub_id}: the hub wants its licence accepted first",
            "accept it on the model's page, then set HF_TOKEN",
        )
    except errors.RepositoryNotFoundError:
        what = f"{ref.hub_id}: the hub has no such model, or it is private.{near(str(ref.hub_id), _known_names())}"
        fix = "check the name, or set HF_TOKEN"
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            what, fix = _unreachable(ref)
        else:
            what, fix = (
                f"{ref.hub_id}: its repository lacks a file that is needed: {error}",
                "choose a transformers model",
            )
    except errors.HFValidationError as error:
        what, fix = f"{ref.hub_id}: no hub id: {error}", "give owner/name as on the model's page, or a local folder"
    except (OSError, errors.HfHubHTTPError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            what = f"{ref.hub_id}: cannot be kept at {error.filename or 'HF_HOME'}: {error.strerror}"
            fix = "free some room, or set HF_HOME to a folder of your own on another disk"
        else:
            what, fix = _unreachable(ref)
    raise HubError(what, fix=fix)


def _unreachable(ref: ModelRef) -> tuple[str, str]:
    known = _known_names()
    hint = "" if ref.hub_id in known else near(str(ref.hub_id), known)
    why = environment.OFFLINE if environment.is_offline() else "the hub cannot be reached"
    return (
        f"{ref.hub_id}: no folder here, not in the hub's local cache, and {why}",
        f"connect to the network, or give a local folder.{hint}",
    )
