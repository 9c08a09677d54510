"""Small files of /proc and /sys: what is missing or closed to us is empty."""

from __future__ import annotations

from pathlib import Path


def text(path: Path) -> str:
    """The file's text without blanks around it; zero bytes, which the device tree ends its strings with, are blanks."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """The decimal number that the file is."""
    digits = text(path)
    return int(digits) if digits.isdecimal() else None


def entries(folder: Path, pattern: str = "*") -> list[Path]:
    """What is in a folder, by name, with numbers in their order; nothing where there is no such folder."""
    try:
        return sorted(folder.glob(pattern), key=lambda path: (len(path.name), path.name))
    except OSError:
        return []
