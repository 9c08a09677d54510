"""Which language a text is in: by its script, and for ten languages in Latin letters by their commonest words.

No model: a text without a clear answer is "unsure". Short texts, code and numbers are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

UNSURE = "unsure"
MOST_WORDS = 200  # of a text are looked at: fewer than 256, so that a count fits a byte
MOST_CHARACTERS = 1000
# A language must have so many of its common words, such a share of all words, and so many times the next language's
LEAST_HITS, LEAST_SHARE, LEAD = 2, 0.08, 1.3

COMMON_WORDS = {
    "English": "the of and to in is that for it with as was on be by this are or from at you have not which an will "
    "what your how my can do does we they he she his her many much if there has a i would but all had their its about",
    "German": "der die das und ist nicht ein eine einen einem mit auf für den dem von sich auch ich sie wir wie oder "
    "bei wird sind zu im zum zur aus nach dass als es kann",
    "French": "le la les des est et une un du que qui dans pour pas sur avec ce cette sont au aux par il elle nous "
    "vous je ou mais plus être ne en",
    "Spanish": "el la los las de que y en un una es por con para no se del al su lo como más pero son está hay qué "
    "muy este esta yo",
    "Italian": "il lo la gli le di che e un una è per con non sono del della dei nel alla si da come più anche ma "
    "questo questa ha i",
    "Portuguese": "o a os as de que e um uma é por com para não se do da dos das no na em ao como mais mas foi são "
    "você isso está",
    "Dutch": "de het een en van is dat niet met op voor zijn aan te er ook maar bij naar als wordt deze hij ze ik je "
    "heeft om uit",
    "Swedish": "och att det som en ett är på för med av den inte till har om jag du vi var kan från eller men så de",
    "Polish": "i w na z do nie się jest to że jak od po za przez dla czy ale o są być ma oraz które który jego",
    "Turkish": "ve bir bu da de için ile olarak çok daha en ne gibi kadar olan var mi değil ben sonra ama her",
}
# Where scripts begin and end, by code point; Unicode 16, Blocks.txt
SCRIPTS = (
    ("Latin", 0x41, 0x24F), ("Latin", 0x1E00, 0x1EFF), ("Greek", 0x370, 0x3FF), ("Cyrillic", 0x400, 0x52F),
    ("Armenian", 0x530, 0x58F), ("Hebrew", 0x590, 0x5FF), ("Arabic script", 0x600, 0x77F),
    ("Devanagari", 0x900, 0x97F), ("Bengali", 0x980, 0x9FF), ("Tamil", 0xB80, 0xBFF), ("Telugu", 0xC00, 0xC7F),
    ("Thai", 0xE00, 0xE7F), ("Georgian", 0x10A0, 0x10FF), ("Korean", 0x1100, 0x11FF), ("kana", 0x3040, 0x30FF),
    ("Han", 0x3400, 0x9FFF), ("Korean", 0xAC00, 0xD7AF),
)  # fmt: skip
LANGUAGES = tuple(COMMON_WORDS)
NAMES = tuple(dict.fromkeys(name for name, _, _ in SCRIPTS))


def _votes() -> dict[str, int]:
    """Word to a number with a byte for each language, 1 where the word is common: sums count all languages at once."""
    votes: dict[str, int] = {}
    for number, words in enumerate(COMMON_WORDS.values()):
        for word in set(words.split()):
            votes[word] = votes.get(word, 0) + (1 << 8 * number)
    return votes


def _scripts_of_code_points() -> np.ndarray:
    """uint8 [0x10000]: 1 + index into NAMES, 0 for what is no letter of a known script."""
    table = np.zeros(0x10000, dtype=np.uint8)
    for name, first, last in SCRIPTS:
        table[first : last + 1] = 1 + NAMES.index(name)
    for first, last in ((0x5B, 0x60), (0x7B, 0xBF)):  # signs among the Latin letters
        table[first : last + 1] = 0
    return table


VOTES = _votes()
SCRIPT_OF = _scripts_of_code_points()


def language_of(text: str, words: Sequence[str]) -> str:
    """A language, a script where that is all that can be told, or "unsure". words: those of `text`, in lower case."""
    script = "Latin" if text.isascii() else _script_of(text[:MOST_CHARACTERS])
    return _by_common_words(words[:MOST_WORDS]) if script == "Latin" else script


def _script_of(text: str) -> str:
    points = np.frombuffer(text.encode("utf-32-le", "replace"), dtype="<u4")
    counts = np.bincount(SCRIPT_OF[points[points < len(SCRIPT_OF)]], minlength=len(NAMES) + 1)[1:]
    letters = {name: int(count) for name, count in zip(NAMES, counts, strict=True) if count}
    east_asian = letters.pop("Han", 0)
    kana = letters.pop("kana", 0)
    # Japanese mixes Han with kana; Chinese has none
    if east_asian or kana:
        letters["Japanese" if kana > 0.1 * (east_asian + kana) else "Chinese"] = east_asian + kana
    if not letters:
        return UNSURE
    name = max(letters, key=letters.__getitem__)
    return name if letters[name] > 0.5 * sum(letters.values()) else UNSURE


def _by_common_words(words: Sequence[str]) -> str:
    hits = sum(map(VOTES.get, words, itertools.repeat(0))).to_bytes(len(COMMON_WORDS), "little")
    second, most = sorted(hits)[-2:]
    sure = most >= LEAST_HITS and most >= LEAST_SHARE * len(words) and most >= LEAD * second
    return LANGUAGES[hits.index(most)] if sure else UNSURE
