"""What does the hub say of a model? A catalogue entry from its repository, to look over and keep.

    python -m autoft.profiles.refresh Qwen/Qwen3-8B > profiles/models/qwen3-8b.toml

The one module of profiles that asks the network. HF_ENDPOINT, HF_TOKEN and HF_HOME mean what they mean elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from autoft.errors import AutoftError, ModelError, OptionError
from autoft.profiles.model_catalogue import ModelProfile

T = TypeVar("T")

# Of config.json, what does not shape the model
LEFT_OUT = ("_name_or_path", "auto_map", "torch_dtype", "transformers_version", "use_cache")
# What a chat template writes that no other family's does, the narrower sign first
TEMPLATES = (
    ("<|start_header_id|>", "llama-3"),
    ("<start_of_turn>", "gemma"),
    ("<|im_sep|>", "phi-4"),
    ("<|im_start|>", "chatml"),
    ("<<SYS>>", "llama-2"),
    ("[INST]", "mistral"),
    ("<|START_OF_TURN_TOKEN|>", "cohere"),
    ("<|start_of_role|>", "granite"),
    ("[|endofturn|]", "exaone-4"),
    ("<|channel|>", "harmony"),
    ("<extra_id_0>", "nemotron"),
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
        raise ModelError(f"{hub_id}: {name} is no JSON: {error}", fix="choose another model") from None
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


def main(words: list[str]) -> int:
    """Prints the entry as TOML. Returns the exit code."""
    try:
        if len(words) != 1:
            raise OptionError("one hub id is wanted", fix="python -m autoft.profiles.refresh OWNER/NAME")
        print(profile_from_hub(words[0]).to_toml(), end="")
    except AutoftError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
