"""What autoft relies on of PyTorch and Hugging Face that they do not promise: a table a library, checked as one.

docs/decisions/0021-private-hooks.md says why, and what to do when a library is upgraded.
"""

from __future__ import annotations

from autoft.hooks import Hook, Table
from autoft.trainer.compat import bitsandbytes, peft, torch, transformers, trl

TABLES: dict[str, Table] = {each.TABLE.library: each.TABLE for each in (torch, transformers, trl, peft, bitsandbytes)}


def hooks() -> list[Hook]:
    """Every row of every table."""
    return [hook for table in TABLES.values() for hook in table.hooks]
