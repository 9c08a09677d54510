"""Which devices does CUDA show to this process, and in what order? CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, as CUDA
reads them.

Sources: CUDA programming guide, "CUDA Environment Variables"; MIG user guide, "CUDA Device Enumeration"; torch.cuda.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Before it a process saw one MIG instance and no other GPU then; since, one of each GPU instance, beside whole GPUs.
MANY_MIG_SINCE_DRIVER = 570


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A MIG instance. key: what the caller knows it by."""

    key: str
    uuid: str | None
    gpu_instance: int | None = None
    compute_instance: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A GPU. key: what the caller knows it by. instances: None when MIG is off.

    speed: cores times clock, None where unknown. bus_id: on the PCI bus, which sorts as text.
    """

    key: str
    uuid: str | None = None
    bus_id: str | None = None
    speed: int | None = None
    instances: tuple[Instance, ...] | None = None


def cuda_order(cards: Sequence[Card], order: str | None) -> tuple[list[Card], bool]:
    """The cards as CUDA numbers them, and whether that is certain. order: CUDA_DEVICE_ORDER.

    By default CUDA puts the fastest first, by a rule that it does not tell: here, the most cores times clock. It is
    certain where all are alike.
    """
    by_bus = sorted(cards, key=lambda card: card.bus_id or "") if all(card.bus_id for card in cards) else list(cards)
    if order == "PCI_BUS_ID" or len({card.speed for card in cards}) <= 1:
        return by_bus, True
    speeds = [card.speed for card in by_bus]
    if None in speeds:
        return by_bus, False
    return sorted(by_bus, key=lambda card: -(card.speed or 0)), False


def visible(setting: str | None, cards: Sequence[Card], *, many_mig: bool = True) -> list[str]:
    """Keys of the devices that CUDA shows, in its order.

    setting: CUDA_VISIBLE_DEVICES. cards: in the order that `cuda_order` gives.
    An entry is an index, or the beginning of a UUID of a GPU or MIG instance, or MIG-GPU-UUID/GI/CI of old drivers. The
    first entry that names nothing, or more than one, ends the list; a device named twice empties it. A GPU in MIG mode
    stands for its first instance; one without instances is none.
    many_mig: the driver shows more than one MIG instance to a process.
    """
    numbered = [device for card in cards for device in _devices(card, many_mig=many_mig)]
    if setting is None:
        devices = numbered
    else:
        devices = []
        for entry in setting.split(","):
            device = _named(entry.strip(), cards, numbered)
            if device is None:
                break
            if device in devices:
                return []
            devices.append(device)
    return [device.key for device in _shown_together(devices, cards, many_mig=many_mig)]


def _devices(card: Card, *, many_mig: bool) -> list[Card | Instance]:
    """What CUDA makes of a card: itself, or the first compute instance of each GPU instance (or of the first alone)."""
    if card.instances is None:
        return [card]
    firsts = {instance.gpu_instance: instance for instance in reversed(card.instances)}
    kept = [instance for instance in card.instances if firsts[instance.gpu_instance] is instance]
    return [*kept] if many_mig else [*kept[:1]]


def _named(entry: str, cards: Sequence[Card], numbered: Sequence[Card | Instance]) -> Card | Instance | None:
    if entry.startswith("GPU-"):
        matches = [card for card in cards if card.uuid and card.uuid.startswith(entry)]
        if len(matches) != 1:
            return None
        return next(iter(_devices(matches[0], many_mig=False)), None)
    if entry.startswith("MIG-"):
        instances = [(card, instance) for card in cards for instance in card.instances or ()]
        named = [i for c, i in instances if (i.uuid and i.uuid.startswith(entry)) or entry == _old_name(c, i)]
        return named[0] if len(named) == 1 else None
    digits = re.match(r"\+?\d+", entry)
    return numbered[int(digits[0])] if digits and int(digits[0]) < len(numbered) else None


def _old_name(card: Card, instance: Instance) -> str:
    return f"MIG-{card.uuid}/{instance.gpu_instance}/{instance.compute_instance}"


def _shown_together(
    found: Sequence[Card | Instance], cards: Sequence[Card], *, many_mig: bool
) -> Sequence[Card | Instance]:
    """Of the devices asked for those that one process may have."""
    instances = [device for device in found if isinstance(device, Instance)]
    if not many_mig:
        return instances[:1] or found
    parents = {instance.key: card.key for card in cards for instance in card.instances or ()}
    taken: set[tuple[str, int | None]] = set()
    kept = []
    for device in found:
        if isinstance(device, Instance):
            place = (parents[device.key], device.gpu_instance)
            if place in taken:
                continue
            taken.add(place)
        kept.append(device)
    return kept
