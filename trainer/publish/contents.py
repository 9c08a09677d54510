"""What is uploaded of a folder: files that autoft wrote, without paths of this machine, and the card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from autoft.errors import ModelError
from autoft.home import sha256
from autoft.schema import object_in
from autoft.trainer.evaluation.open_run import read_result
from autoft.trainer.export.staging import RECORD
from autoft.trainer.publish.card import card_of_export, card_of_run
from autoft.trainer.report.wording import snippet
from autoft.trainer.result import RunResult
from autoft.trainer.storage.ownership import CARD, REPORT, RESULT

WITH_EXAMPLES = (RESULT, REPORT)  # they show rows that were held out
# What an export's folder holds; anything else there is not autoft's
EXPORTED = (
    RECORD, CARD, "*.safetensors", "*.safetensors.index.json", "*.gguf", "Modelfile", "config.json",
    "generation_config.json", "adapter_config.json", "tokenizer*.json", "tokenizer*.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "chat_template.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """files: by their names in the repository, the card aside. card: text of its README.md. left_out: other files that
    lie in the folder. with_examples: files of the folder that show held-out rows of the data."""

    files: Mapping[str, Path]
    card: str
    left_out: tuple[str, ...]
    with_examples: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, the card with them."""
        return {CARD: len(self.card.encode()), **{name: path.stat().st_size for name, path in self.files.items()}}


def publication_of(folder: Path, name: str, *, examples: bool = False) -> Publication:
    """What to upload of `folder`. name: of the repository. examples: with the files that show held-out rows.

    Raises: ModelError when it holds neither a finished run nor an export, or a file of the run is not what it wrote.
    """
    if (folder / RESULT).is_file():
        return _of_run(folder, read_result(folder), name, examples=examples)
    record = object_in(folder / RECORD)
    if "autoft_version" not in record:
        raise ModelError(
            f"{folder}: neither a finished run nor an export",
            fix="a folder of autoft run, merge or export",
        )
    present = _files(folder)
    files = {name: path for name, path in present.items() if any(fnmatch(name, pattern) for pattern in EXPORTED)}
    card = card_of_export(_text(files.pop(CARD, None)), record, files, name)
    return Publication(files=files, card=card, left_out=_others(folder, files))


def _of_run(folder: Path, result: RunResult, name: str, *, examples: bool) -> Publication:
    present = _files(folder)
    for artifact, digest in result.artifacts.items():
        if artifact != CARD and (artifact not in present or sha256(present[artifact]) != digest):
            raise ModelError(
                f"{folder}: its {artifact} is not the file that the run wrote", fix="restore the file, or run again"
            )
    with_examples = WITH_EXAMPLES if result.samples or result.sample else ()
    names = {*result.artifacts, *WITH_EXAMPLES} - {CARD, *(() if examples else with_examples)}
    files = {name: path for name, path in present.items() if name in names}
    text = _text(present.get(CARD))
    if text is not None and not examples:
        text = text.replace(snippet(result), snippet(replace(result, samples=(), sample=None)))
    return Publication(
        files=files,
        card=card_of_run(text, result, name),
        left_out=_others(folder, files),
        with_examples=tuple(name for name in with_examples if name in present),
    )


def _files(folder: Path) -> dict[str, Path]:
    """Files below `folder` by their paths in it; links may lead anywhere, and are none."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {name: path for name, path in paths.items() if path.is_file() and not _is_linked(path, folder)}


def _is_linked(path: Path, folder: Path) -> bool:
    inside = [path, *(parent for parent in path.parents if parent.is_relative_to(folder) and parent != folder)]
    return any(part.is_symlink() for part in inside)


def _others(folder: Path, files: Iterable[str]) -> tuple[str, ...]:
    uploaded = {CARD, *files}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    return tuple(name for path in paths if (name := path.relative_to(folder).as_posix()) not in uploaded)


def _text(card: Path | None) -> str | None:
    return None if card is None else card.read_text(encoding="utf-8", errors="replace")
