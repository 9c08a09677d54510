"""Keys, and what tells who somebody is: which kinds a text holds. What was found is never kept."""

from __future__ import annotations

import ipaddress
import re

# Kind: what begins it (looked for first, which is quick), and its whole form
# Sources: the providers' documentation of their tokens, and the rules of gitleaks 8
KEYS: dict[str, tuple[tuple[str, ...], re.Pattern[str]]] = {
    "AWS access key": (("AKIA", "ASIA"), re.compile(r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b")),
    "GitHub token": (
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,})"),
    ),
    "Anthropic key": (("sk-ant-",), re.compile(r"\bsk-ant-[\w-]{20,}")),
    "OpenAI key": (("sk-",), re.compile(r"\bsk-(?!ant-)(?:proj-|svcacct-|admin-)?(?=[\w-]*\d)[A-Za-z0-9_-]{32,}")),
    "Hugging Face token": (("hf_",), re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")),
    "Google key": (("AIza",), re.compile(r"\bAIza[\w-]{35}(?![\w-])")),
    "Slack token": (("xox",), re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}")),
    "Stripe key": (("_live_",), re.compile(r"\b[sr]k_live_[A-Za-z0-9]{16,}")),
    "JSON web token": (("eyJ",), re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}")),
    "private key": (("PRIVATE KEY",), re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")),
}
KIND_OF = {beginning: kind for kind, (beginnings, _) in KEYS.items() for beginning in beginnings}
# Every one of the forms below that begin or go on with digits has such a run: one quick look instead of four
DIGITS = re.compile(r"[0-9][0-9 .()/-]{5,}[0-9]")
EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b")
# With a country's code, or as North America writes them; digits alone are as often something else
PHONE = re.compile(
    r"(?<![\w+])\+[1-9](?:[ .()/-]{0,2}\d){7,14}(?!\d)|(?<![\w.-])(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w-])"
)
CARD = re.compile(r"(?<![\w.-])(?:[3-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,7}|3[47]\d{2}[ -]?\d{6}[ -]?\d{5})(?![\w-])")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{2,4}){2,8}\b")
ADDRESS = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\d)")
# Source: SWIFT's IBAN registry
IBAN_LENGTHS = {
    "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "EE": 20, "ES": 24, "FI": 18,
    "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24, "SA": 24, "SE": 24,
    "SI": 19, "SK": 24, "TR": 26, "UA": 29,
}  # fmt: skip


def secrets_in(text: str) -> list[str]:
    """Kinds of keys and tokens in `text`."""
    there = {KIND_OF[beginning] for beginning in KIND_OF if beginning in text}
    return [kind for kind in KEYS if kind in there and KEYS[kind][1].search(text)] if there else []


def personal_in(text: str) -> list[str]:
    """Kinds of personal data in `text`: by their form and, where they have one, their checksum."""
    kinds = ["e-mail address"] if "@" in text and EMAIL.search(text) else []
    if not DIGITS.search(text):
        return kinds
    if PHONE.search(text):
        kinds.append("phone number")
    if any(map(_is_card, CARD.findall(text))):
        kinds.append("payment card")
    if any(map(_is_iban, IBAN.findall(text))):
        kinds.append("IBAN")
    if any(map(_is_public, ADDRESS.findall(text))):
        kinds.append("IP address")
    return kinds


def _is_card(text: str) -> bool:
    """Luhn's sum, ISO/IEC 7812-1, over 14 to 19 digits that are not all one."""
    digits = [int(digit) for digit in text if digit.isdigit()]
    if not 14 <= len(digits) <= 19 or len(set(digits)) < 2:
        return False
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """Length by country, and the remainder by 97, ISO 13616; words in capitals that follow are no part of it."""
    length = IBAN_LENGTHS.get(text[:2])
    letters = text.replace(" ", "")[:length]
    if length is None or len(letters) != length:
        return False
    return int("".join(str(int(letter, 36)) for letter in letters[4:] + letters[:4])) % 97 == 1


def _is_public(text: str) -> bool:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return address.is_global and not text.startswith(("0.", "1.", "2.", "3.", "4."))  # as versions begin
