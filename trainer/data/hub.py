"""A dataset of the hub, through `datasets`: fetched once, then read from Arrow files that are mapped, not loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from autoft.errors import DataError, near
from autoft.trainer.data.files import roles, split_in
from autoft.trainer.data.lines import RawRow
from autoft.trainer.data.opened import Data
from autoft.trainer.runtime import environment

HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w.-]+))?")
FORM = "owner/name, owner/name:split, or owner/name/configuration:split"


def is_hub_id(path: str) -> bool:
    """Whether `path` has the form owner/name[/configuration][:split]."""
    return HUB_ID.fullmatch(path) is not None


def hub_data(path: str) -> Data:
    """The dataset that `path` names; without a split the one to train on, and held out what its others are for.

    No code of a dataset is run: `datasets` has not run any since version 4.
    Raises: DataError when it cannot be found, reached or read, and when it is not clear which split is meant.
    """
    named = HUB_ID.fullmatch(path)
    assert named is not None
    name, split = named["id"], named["split"]
    where = path.removesuffix(f":{split}") if split else path
    splits = _load(path, name, named["config"])
    if split is not None and split not in splits:
        raise DataError(
            f"{path}: no split {split!r}.{near(split, splits)}",
            fix=f"one of: {', '.join(f'{where}:{s}' for s in splits)}",
        )
    by_role = roles([split] if split else _without_unnamed(list(splits)))
    if len(by_role.train) > 1:
        raise DataError(
            f"{path}: has the splits {', '.join(splits)}", fix=f"name one, such as {where}:{by_role.train[0]}"
        )
    (train,) = by_role.train
    heldout = partial(_rows, splits[by_role.heldout], f"{where}:{by_role.heldout}") if by_role.heldout else None
    return Data(partial(_rows, splits[train], f"{where}:{train}"), heldout, by_role)


def _without_unnamed(splits: list[str]) -> list[str]:
    """Without splits such as "unsupervised" where there is one to train on."""
    named = [split for split in splits if split_in(split)]
    return named if any(split_in(split) == "train" for split in named) else splits


def _rows(dataset: Any, where: str, **_: Any) -> Iterator[RawRow]:
    """Rows of a table: none is broken, so that whoever would be told of that is not needed."""
    from autoft.trainer.data.columnar import rows_of

    yield from rows_of(dataset.data.to_batches(), dataset.features.arrow_schema, where)


def _load(path: str, name: str, config: str | None) -> Any:
    """The splits by name. Without a network what `datasets` or the hub's own client has fetched before."""
    import datasets
    from datasets import exceptions

    try:
        try:
            return datasets.load_dataset(name, config)
        except ConnectionError:
            folder = _fetched(name)
            if folder is None:
                raise
            return datasets.load_dataset(folder, config)
    except exceptions.DatasetNotFoundError as error:
        if "gated" in str(error):
            raise DataError(
                f"{path}: the hub wants its terms accepted first", fix="accept them on its page, then set HF_TOKEN"
            ) from None
        raise DataError(
            f"{path}: no such file or folder here, and the hub has no such dataset, or it is private",
            fix=f"check the name ({FORM}), or set HF_TOKEN",
        ) from None
    except ConnectionError:
        why = environment.OFFLINE if environment.is_offline() else "the hub cannot be reached"
        raise DataError(
            f"{path}: no such file or folder here, no dataset in the hub's local cache, and {why}",
            fix="check the path, or connect to the network",
        ) from None
    except Exception as error:  # what its many readers raise
        raise DataError(
            f"{path}: datasets cannot read it: {' '.join(str(error).split())[:300]}",
            fix=f"name one of its configurations ({FORM}), or give its files by a local path",
        ) from error


def _fetched(name: str) -> str | None:
    """The folder of a dataset that `hf download` has brought whole."""
    from huggingface_hub import errors, snapshot_download

    try:
        return str(snapshot_download(name, repo_type="dataset", local_files_only=True))
    except errors.LocalEntryNotFoundError:
        return None
