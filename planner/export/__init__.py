"""Which trainers can a plan be exported to, and what does each read?

In: a Plan. Out: the files that a trainer trains it from, and what it does otherwise. A file here is a trainer: its
EXPORTER makes a Config of a Source; write.py writes it with the data beside it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoft.planner.export.base import Exporter

NAMES = ("axolotl", "llamafactory", "trl", "unsloth")  # of the files that are trainers


def exporter(name: str) -> Exporter:
    """Raises: ModuleNotFoundError for a name that is none of NAMES."""
    trainer: Exporter = importlib.import_module(f"autoft.planner.export.{name}").EXPORTER
    return trainer
