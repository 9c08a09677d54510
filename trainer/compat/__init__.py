"""What autoft relies on of PyTorch and Hugging Face that they do not promise: a table a library, checked as one.

docs/decisions/0021-private-hooks.md says why, and what to do when a library is upgraded.
"""

from __future__ import annotations

from autoft.hooks import Hook, Table, check
from autoft.trainer.compat import bitsandbytes, peft, torch, transformers, trl

TABLES: dict[str, Table] = {each.TABLE.library: each.TABLE for each in (torch, transformers, trl, peft, bitsandbytes)}


def hooks() -> list[Hook]:
    """Every row of every table."""
    return [hook for table in TABLES.values() for hook in table.hooks]


def differences(*libraries: str) -> dict[str, list[str]]:
    """By library, all where none is named: what is not as tested, a line each. Imports the libraries."""
    from autoft.trainer import environment

    environment.prepare()
    if libraries != ("torch",):
        environment.import_bitsandbytes()
    import torch as installed

    cuda = installed.version.cuda is not None
    return {name: check(TABLES[name].hooks, cuda=cuda) for name in libraries or TABLES}
