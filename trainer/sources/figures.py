"""A configuration's figures: within what any model has, before something is built of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoft.errors import FileFormatError, ModelError
from autoft.schema import parse_json, read_text

# (least, most) of a figure, wherever it stands in a configuration. The most is far above any published model's: it is
# there for memory, since transformers makes lists, and the planner layers, as long as it says.
BOUNDS: dict[str, tuple[int, int]] = {
    "num_hidden_layers": (1, 2_000),
    "n_layer": (1, 2_000),
    "n_layers": (1, 2_000),
    "num_layers": (0, 2_000),
    "hidden_size": (1, 2**20),
    "n_embd": (1, 2**20),
    "d_model": (1, 2**20),
    "intermediate_size": (0, 2**22),
    "moe_intermediate_size": (0, 2**22),
    "head_dim": (1, 2**16),
    "vocab_size": (1, 2**28),
    "num_attention_heads": (1, 2**14),
    "n_head": (1, 2**14),
    "n_heads": (1, 2**14),
    "num_key_value_heads": (1, 2**14),
    "num_experts": (0, 2**14),
    "num_local_experts": (0, 2**14),
    "n_routed_experts": (0, 2**14),
    "max_position_embeddings": (1, 2**40),
}


def read_settings(path: Path) -> dict[str, Any]:
    """What a config.json says. Raises: ModelError for a file that is none, and for a figure that no model has."""
    try:
        settings = parse_json(read_text(path), where=str(path))
    except FileFormatError as error:
        reason = error.what.removeprefix(f"{path}:").strip()
        raise ModelError(
            f"{path}: cannot be read as a model configuration: {reason}", fix="download the file again"
        ) from None
    if not isinstance(settings, dict):
        raise ModelError(f"{path}: cannot be read as a model configuration: no object", fix="download the file again")
    _check(settings, str(path))
    return settings


def _check(value: Any, where: str) -> None:
    for part in value if isinstance(value, list) else []:
        _check(part, where)
    for name, part in value.items() if isinstance(value, dict) else []:
        if name in BOUNDS and isinstance(part, int | float) and not isinstance(part, bool):
            least, most = BOUNDS[name]
            if not least <= part <= most or part != int(part):
                raise ModelError(
                    f"{where}: {name} = {part!r:.40} is not valid for a model", fix="download the file again"
                )
        else:
            _check(part, where)
