"""Characters that should not be in text: mangled on their way here, invisible, or left over from HTML."""

from __future__ import annotations

import re

# C0 without tab, line feed and carriage return; and terminal colors, whose escape is one of them
CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# Joiners (U+200C, U+200D) are left alone: Persian, Indic scripts and emoji are written with them
INVISIBLE = re.compile("[\u200b\u2060\ufeff]")
# Overrides of the direction of text, which can hide what it says: trojansource.codes. U+200E and U+200F are harmless.
DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
# Lead bytes of UTF-8 and the continuation bytes after them, read as Latin-1 or as Windows-1252: of accented letters,
# of punctuation, of emoji, and of two East Asian characters in a row (one could be French before a closing quote)
_AFTER = re.escape(bytes(range(0x80, 0xC0)).decode("cp1252", "ignore") + "".join(map(chr, range(0x80, 0xC0))))
MOJIBAKE = re.compile(
    f"\xc3[{_AFTER}]|\xc2[\x80-\xbf]|\xe2(?:\u20ac|[{_AFTER}][{_AFTER}])|\xf0[\u0178\x9f][{_AFTER}]"
    f"|(?:[\xe3-\xe9][{_AFTER}][{_AFTER}]){{2}}|[\x80-\x9f]"
)
REPLACED = "\ufffd"
HTML = re.compile(
    r"&(?:amp|lt|gt|quot|nbsp|apos|#\d{2,6}|#x[0-9a-fA-F]{2,6});|</?(?:br|p|div|span|font|strong|em|li|ul|td|tr)\b[^<>]*>"
)
BLANK_START = re.compile(r"\A(?:[ \t]*\r?\n)+")

# What each kind is, for people, in the order of the report
KINDS = {
    "control": "control characters",
    "invisible": "zero-width characters",
    "direction": "characters that override the direction of text",
    "mojibake": "text read in the wrong encoding, such as “Ã©” for “é”",
    "replaced": "U+FFFD, which stands for a character that was lost",
    "html": "remnants of HTML, such as &amp; or <br>",
}


def troubles(text: str) -> list[str]:
    """Which of KINDS are in `text`."""
    kinds = ["control"] if CONTROL.search(text) else []
    if not text.isascii():
        checks = (("invisible", INVISIBLE), ("direction", DIRECTION), ("mojibake", MOJIBAKE))
        kinds += [kind for kind, pattern in checks if pattern.search(text)]
        if REPLACED in text:
            kinds.append("replaced")
    if ("&" in text or "<" in text) and HTML.search(text):
        kinds.append("html")
    return kinds


def visible(text: str) -> str:
    """`text` without control characters, terminal colors, zero-width characters and direction overrides."""
    text = CONTROL.sub("", text)
    return text if text.isascii() else DIRECTION.sub("", INVISIBLE.sub("", text))


def trimmed(text: str) -> str:
    """`text` without blank lines before it and white space after it; the first line's indent may have a meaning."""
    return BLANK_START.sub("", text).rstrip()
