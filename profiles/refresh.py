"""What does the hub say of models? Catalogue entries from their repositories, to look over and keep.

    python -m autoft.profiles.refresh Qwen/Qwen3-8B                           prints the entry
    python -m autoft.profiles.refresh Qwen/Qwen3-8B Qwen/Qwen3-14B            writes a file each into profiles/models
    python -m autoft.profiles.refresh 'Qwen/Qwen3-*' --into FOLDER --force    a family, and over files that are there

The one module of profiles that asks the network. HF_ENDPOINT, HF_TOKEN and HF_HOME mean what they mean elsewhere.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from autoft.errors import AutoftError, ModelError, OptionError, OutputError
from autoft.profiles.model_catalogue import ModelProfile

T = TypeVar("T")

USAGE = "python -m autoft.profiles.refresh OWNER/NAME [OWNER/NAME or 'OWNER/PATTERN' ...] [--into FOLDER] [--force]"
CATALOGUE = Path("profiles/models")
# Of config.json, what does not shape the model
LEFT_OUT = ("_name_or_path", "auto_map", "torch_dtype", "transformers_version", "use_cache")
# What a chat template writes that no other family's does, the narrower sign first
TEMPLATES = (
    ("<|start_header_id|>", "llama-3"),
    ("<|header_start|>", "llama-4"),
    ("<start_of_turn>", "gemma"),
    ("<|turn>", "gemma-4"),
    ("<|im_sep|>", "phi-4"),
    ("<|im_middle|>", "kimi"),
    ("<end_of_utterance>", "smolvlm"),
    ("<|im_start|>", "chatml"),
    ("<|assistant_start|>", "apertus"),
    ("<<SYS>>", "llama-2"),
    ("[INST]", "mistral"),
    ("<|START_OF_TURN_TOKEN|>", "cohere"),
    ("<|start_of_role|>", "granite"),
    ("[|endofturn|]", "exaone-4"),
    ("<|channel|>", "harmony"),
    ("<extra_id_0>", "nemotron"),
    ("<SPECIAL_11>", "nemotron-nano-2"),
    ("<seed:bos>", "seed"),
    ("<\uff5chy_User\uff5c>", "hunyuan"),
    ("<\uff5cUser\uff5c>", "deepseek"),
)


def profile_from_hub(hub_id: str) -> ModelProfile:
    """The entry that the hub's repository gives: its config.json, licence, gating, commit and parameter count.

    The count is the hub's total over safetensors, which holds a tied head twice where the files do. The template is
    told by its special tokens, None where they are of no family known here.
    Raises: ModelError when the hub has no such model, wants a licence accepted, or cannot be reached.
    """
    from huggingface_hub import HfApi

    info = _from_hub(hub_id, lambda: HfApi().model_info(hub_id))
    config = _json(hub_id, info.sha, "config.json")
    if config is None or "model_type" not in config:
        raise ModelError(f"{hub_id}: its repository has no config.json of transformers", fix="choose another model")
    tokenizer = _json(hub_id, info.sha, "tokenizer_config.json") or {}
    dtype = config.get("dtype") or config.get("torch_dtype")
    shaping = {key: value for key, value in config.items() if key not in LEFT_OUT}
    total = info.safetensors.total if info.safetensors else None
    return ModelProfile(
        name=hub_id.rpartition("/")[2].lower(),
        hub_id=info.id,
        revision=info.sha,
        licence=_licence(info),
        gated=bool(info.gated),
        source=f"config.json of {info.id}",
        parameters=total,
        parameters_source="total of the hub's safetensors" if total else "",
        chat_template=_template(tokenizer.get("chat_template") or _text(hub_id, info.sha, "chat_template.jinja")),
        stop_tokens=_stop_tokens(tokenizer),
        base_dtype=dtype if dtype in ("bfloat16", "float16") else None,
        notes=("its repository brings code of its own, which autoft does not run",) if "auto_map" in config else (),
        config=_plain({key: value for key, value in shaping.items() if value is not None}),
        config_null=tuple(key for key, value in shaping.items() if value is None),
    )


def _licence(info: Any) -> str:
    """The hub's short name, its own name where that is "other", "unknown" without one."""
    card = info.card_data.to_dict() if info.card_data else {}
    tag = next((tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")), "unknown")
    licence = card.get("license") or tag
    return str(card.get("license_name") or licence) if licence == "other" else str(licence)


def _template(template: Any) -> str | None:
    """The family of a chat template; "none" without one."""
    if not template:
        return "none"
    text = json.dumps(template, ensure_ascii=False)
    return next((family for sign, family in TEMPLATES if sign in text), None)


def _stop_tokens(tokenizer: dict[str, Any]) -> tuple[str, ...]:
    """The text of the tokenizer's end token."""
    token = tokenizer.get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    return (text,) if isinstance(text, str) else ()


def _plain(value: Any) -> Any:
    """Without what TOML cannot say: keys that are null inside tables."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items() if v is not None}
    return [_plain(v) for v in value if v is not None] if isinstance(value, list) else value


def _json(hub_id: str, revision: str | None, name: str) -> dict[str, Any] | None:
    text = _text(hub_id, revision, name)
    if text is None:
        return None
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{hub_id}: {name} is not JSON: {error}", fix="choose another model") from None
    return data if isinstance(data, dict) else None


def _text(hub_id: str, revision: str | None, name: str) -> str | None:
    """The repository's file, None where there is none."""
    from huggingface_hub import errors, hf_hub_download

    def read() -> str | None:
        try:
            return Path(hf_hub_download(hub_id, name, revision=revision)).read_text(encoding="utf-8")
        except errors.RemoteEntryNotFoundError:
            return None

    return _from_hub(hub_id, read)


def _from_hub(hub_id: str, ask: Callable[[], T]) -> T:
    from huggingface_hub import errors

    try:
        return ask()
    except errors.GatedRepoError:
        what = f"{hub_id}: the hub wants its licence accepted first"
        fix = "accept it on the model's page, then set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        what, fix = f"{hub_id}: the hub has no such model, or it is private", "check the name, or set HF_TOKEN"
    except errors.HFValidationError as error:
        what, fix = f"{hub_id}: no hub id: {error}", "give owner/name as on the model's page"
    except Exception as error:  # noqa: BLE001 - of many kinds, those of the client's HTTP library among them
        reason = " ".join(str(error).split())[:200]
        what, fix = f"{hub_id}: the hub cannot be reached: {reason}", "connect to the network, and look at HF_ENDPOINT"
    raise ModelError(what, fix=fix)


def find_models(words: Iterable[str], *, failed: Callable[[AutoftError], None]) -> list[str]:
    """Hub ids of `words`, each once: ids as they are, patterns as those of the owner's models that match, in any case.

    failed: called with the error of a pattern that matches none, or that the hub does not answer.
    """
    names: dict[str, None] = {}
    for word in words:
        try:
            names |= dict.fromkeys(_matching(word) if _is_pattern(word) else [word])
        except AutoftError as error:
            failed(error)
    return list(names)


def _is_pattern(word: str) -> bool:
    return any(sign in word for sign in "*?[")


def _matching(pattern: str) -> list[str]:
    from huggingface_hub import HfApi

    owner, _, name = pattern.partition("/")
    if not name or _is_pattern(owner):
        raise OptionError(f"{pattern}: a pattern is of one owner's models", fix="OWNER/PATTERN, such as 'Qwen/Qwen3-*'")
    models = _from_hub(pattern, lambda: [model.id for model in HfApi().list_models(author=owner)])
    matching = sorted(model for model in models if fnmatchcase(model.lower(), pattern.lower()))
    if not matching:
        raise ModelError(f"{pattern}: none of {len(models)} models of {owner} match", fix="check the pattern")
    return matching


def write_entry(hub_id: str, folder: Path, *, force: bool, written: Iterable[Path] = ()) -> Path:
    """Ask the hub for the entry of `hub_id` and write it as NAME.toml into `folder`.

    written: files of this call. Raises: OutputError where the file is one of them, exists without `force`, or cannot be
    written; ModelError as profile_from_hub.
    """
    path = folder / f"{hub_id.rpartition('/')[2].lower()}.toml"
    if path in written:
        raise OutputError(f"{hub_id}: {path} was just written for another model", fix="name one of them alone")
    if path.exists() and not force:
        raise OutputError(f"{hub_id}: {path} exists", fix="--force replaces it")
    text = profile_from_hub(hub_id).to_toml()
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{hub_id}: {path} cannot be written: {error}", fix="choose another folder") from error
    return path


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(message, fix=USAGE)


def _parse(words: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m autoft.profiles.refresh", description="Write catalogue entries from the hub.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="Hub id, or OWNER/PATTERN with * ? [].")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help=f"Folder for the files (default: {CATALOGUE}).")
    parser.add_argument("--force", action="store_true", help="Replace files that exist.")
    options = parser.parse_intermixed_args(words)
    if not options.models:
        raise OptionError("no hub id given", fix=USAGE)
    return options


def main(words: list[str]) -> int:
    """Print the entry of one model as TOML, or write those of several. Returns the exit code, of the worst."""
    try:
        options = _parse(words)
        if options.into is None and len(options.models) == 1 and not _is_pattern(options.models[0]):
            print(profile_from_hub(options.models[0]).to_toml(), end="")
            return 0
        folder = options.into or CATALOGUE
        if not folder.is_dir():
            raise OutputError(f"{folder}: no such folder", fix="--into FOLDER, one that exists")
    except AutoftError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return _write_entries(options.models, folder, force=options.force)


def _write_entries(words: list[str], folder: Path, *, force: bool) -> int:
    codes = [0]

    def failed(error: AutoftError) -> None:
        codes.append(error.exit_code)
        print("Error: " + str(error).replace("\n", ". "), file=sys.stderr)

    written: list[Path] = []
    for hub_id in find_models(words, failed=failed):
        try:
            written.append(write_entry(hub_id, folder, force=force, written=written))
            print(written[-1])
        except AutoftError as error:
            failed(error)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
