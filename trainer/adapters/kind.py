"""What a kind of adapter is: the record that each file of kinds fills in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoft.trainer.recipe import Recipe


TRAINED_TOKENS = ".trainable_tokens_"  # in PEFT's names of the rows of an embedding that are trained


def save_as_trained(model: Any, _: Recipe, folder: Path) -> None:
    """Write the adapter as PEFT holds it. Raises: OSError."""
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterKind:
    """One kind of adapter.

    config: (recipe, names of its layers, what is the same for all kinds) -> PEFT's configuration.
    prefix: with which PEFT begins the names of its weights. once: in the name of one weight of every layer that has it.
    keys: fields of the Recipe that it has beside target_modules, adapter_dtype and kbit_upcast, each with its key in
        adapter_config.json. unsaved: those that it does not know.
    peft_type: PEFT's name of it, where that is another. on_layers: whether it is beside layers, which target_modules
        names and a merge changes; else it stands before every row, and does not begin as the base itself.
    unlike: what of a saved configuration would be trained otherwise here, as "key is value"; None for nothing.
    trains: whether an own weight of that name is trained; the others stay as they are made.
    mend: changes what PEFT does wrong in a model that has the adapter, for all who compute with it.
    begin: gives a new adapter the first values that the recipe says, where PEFT did not.
    saved: the recipe of what is saved, where it is of another form than what is trained.
    save: writes a trained adapter of the recipe into a folder, as plain PEFT reads it.
    title: its name for people, of a Recipe. size: how large it is, "rank 16"; empty where it has no size to choose.
    learning_rate: to begin with, and rate_source: where that comes from.
    source: where it is described.
    """

    name: str
    config: Callable[..., Any]
    prefix: str
    once: str
    keys: Mapping[str, str]
    unsaved: frozenset[str] = frozenset()
    peft_type: str = ""
    on_layers: bool = True
    unlike: Callable[[Mapping[str, Any]], str | None]
    trains: Callable[[str, Recipe], bool]
    mend: Callable[[Any], None] = lambda model: None
    begin: Callable[[Any, Recipe], None] = lambda model, recipe: None
    saved: Callable[[Recipe], Recipe] = lambda recipe: recipe
    save: Callable[[Any, Recipe, Path], None] = save_as_trained
    title: Callable[[Recipe], str]
    size: Callable[[Recipe], str]
    learning_rate: float
    rate_source: str
    source: str

    @property
    def type(self) -> str:
        """What adapter_config.json calls it."""
        return self.peft_type or self.name.upper()

    @property
    def settings(self) -> frozenset[str]:
        """Names of its fields of the Recipe."""
        return frozenset(self.keys) | self.unsaved

    def owns(self, weight: str) -> bool:
        """Whether a weight of this name is the adapter's own."""
        return self.prefix in weight or TRAINED_TOKENS in weight

    def layer_of(self, weight: str) -> str:
        """The name of the layer to which an own weight belongs."""
        return weight.partition(f".{self.prefix}")[0]
