"""Figures with their units, for people: bytes are integers inside and times seconds; only here do they become GiB."""

from __future__ import annotations

KIB = 2**10
MIB = 2**20
GIB = 2**30


def size(num_bytes: int) -> str:
    """12.3 GiB, 512 MiB, 31 KiB."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if abs(num_bytes) >= unit:
            return f"{num_bytes / unit:.1f} {name}" if unit == GIB else f"{num_bytes / unit:.0f} {name}"
    return f"{num_bytes / KIB:.0f} KiB"


def duration(seconds: float) -> str:
    """30 ms, 4.5 s, 45 s, 12 min, 3.4 h."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def pace(ratio: float) -> str:
    """A time in parts of another: 1.16x faster, 4% slower, equally fast."""
    change = max(ratio, 1 / ratio)
    if change < 1.005:
        return "equally fast"
    word = "slower" if ratio > 1 else "faster"
    return f"{change - 1:.0%} {word}" if change < 1.1 else f"{change:.2f}x {word}"


def energy(kwh: float) -> str:
    """0.3 Wh, 45 Wh, 1.2 kWh, 340 kWh."""
    value, unit = (kwh, "kWh") if kwh >= 1 else (1000 * kwh, "Wh")
    return f"{value:.1f} {unit}" if value < 10 else f"{value:,.0f} {unit}"


def count(number: float) -> str:
    """135M, 7.2B, 4,096."""
    for limit, unit in ((1e9, "B"), (1e6, "M")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:,.0f}"
