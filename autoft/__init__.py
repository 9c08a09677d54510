"""autoft: the best fine-tune of a language model that this machine can really run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoft.api import estimate, plan, probe, run
    from autoft.errors import AutoftError
    from autoft.planner.plan.record import read_plan

__version__ = "0.1.0"
__all__ = ["AutoftError", "__version__", "estimate", "plan", "probe", "read_plan", "run"]


def __getattr__(name: str) -> Any:
    """Imported when it is used: the command line starts in a tenth of a second without it."""
    if name not in __all__:
        raise AttributeError(f"module 'autoft' has no attribute {name!r}")
    from importlib import import_module

    places = {"AutoftError": "autoft.errors", "read_plan": "autoft.planner.plan.record"}
    return getattr(import_module(places.get(name, "autoft.api")), name)
