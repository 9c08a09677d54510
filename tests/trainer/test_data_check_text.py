"""What one row's text tells: characters that should not be there, keys and personal data, the language."""
# ruff: noqa: RUF001 - the characters are the point

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoft.trainer.data.check.duplicates import normalised, words_of
from autoft.trainer.data.check.language import UNSURE, language_of
from autoft.trainer.data.check.secrets import KEYS, personal_in, secrets_in
from autoft.trainer.data.check.text import MOJIBAKE, trimmed, troubles, visible
from autoft.trainer.data.support_desk import generate

GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k"

# Pieced together so that no scanner of keys takes this file for a leak
LETTERS = "aB3" * 20
SECRETS = {
    "AWS access key": "AKIA" + "IOSFODNN7EXAMPLE",
    "GitHub token": "ghp_" + LETTERS[:36],
    "Anthropic key": "sk-ant-" + "api03-" + LETTERS[:30],
    "OpenAI key": "sk-proj-" + LETTERS[:48],
    "Hugging Face token": "hf_" + "aB" * 17,
    "Google key": "AIza" + LETTERS[:35],
    "Slack token": "xoxb-" + "1234567890-abcdef",
    "Stripe key": "sk_live_" + LETTERS[:24],
    "JSON web token": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijkl",
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
}


@pytest.mark.parametrize("kind", KEYS)
def test_each_kind_of_key_is_found_and_only_it(kind) -> None:
    assert secrets_in(f"here it is: {SECRETS[kind]}, keep it") == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "the AKIAN people", "AKIA and more", "a sk-learn-like name with-many-hyphens-in-it-and-no-digit-at-all",
        "hf_hub_download(repo_id)", "eyJ is how a token begins", "the words PRIVATE KEY", "ghp_short",
    ],
)  # fmt: skip
def test_what_only_resembles_a_key_is_none(text) -> None:
    assert secrets_in(text) == []


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to jane.doe+x@mail.example.co.uk today", ["e-mail address"]),
        ("call +44 20 7946 0958", ["phone number"]),
        ("call (555) 123-4567 or 555-123-4567", ["phone number"]),
        ("pay with 4111 1111 1111 1111", ["payment card"]),
        ("pay with 378282246310005", ["payment card"]),
        ("pay with 4111 1111 1111 1112", []),
        ("to DE89 3704 0044 0532 0130 00 PLEASE", ["IBAN"]),
        ("to GB82WEST12345698765432", ["IBAN"]),
        ("to DE88 3704 0044 0532 0130 00", []),
        ("from 8.8.8.8", ["IP address"]),
        ("from 192.168.0.1, version 1.2.3.4, 999.1.1.1", []),
        ("order 1234567890123456, part 2024-10-12, 12 - 3 - 4 = 5, 3.14159265358979", []),
        ("a decorator such as @functools.cache, user@host", []),
    ],
)
def test_personal_data_by_form_and_checksum(text, kinds) -> None:
    assert personal_in(text) == kinds


def test_the_bundled_task_holds_neither_keys_nor_personal_data() -> None:
    """Its telephone numbers are 555-01xx, of no area: North America keeps them for fiction."""
    for row in [row for side in generate() for row in side]:
        text = "\n".join(message["content"] for message in row["messages"])
        assert secrets_in(text) == personal_in(text) == troubles(text) == []


@pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K is not beside this checkout")
def test_school_maths_holds_neither_keys_nor_personal_data() -> None:
    found = []
    for line in (GSM8K / "test.jsonl").read_text(encoding="utf-8").splitlines():
        text = "\n".join(json.loads(line).values())
        found += [*secrets_in(text), *personal_in(text), *troubles(text)]
        assert language_of(normalised(text), words_of(normalised(text))) in ("English", UNSURE)
    assert found == ["invisible"]  # one row has a zero-width space indeed


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("tab\tand\r\nlines", []),
        ("bell \x07", ["control"]),
        ("\x1b[31mred\x1b[0m", ["control"]),
        ("zero\u200bwidth", ["invisible"]),
        ("evil \u202e txt.exe", ["direction"]),
        ("cafÃ©", ["mojibake"]),
        ("donâ€™t", ["mojibake"]),
        ("don\xe2\x80\x99t", ["mojibake"]),
        ("ðŸ˜€", ["mojibake"]),
        ("æ—¥æœ¬", ["mojibake"]),
        ("lost \ufffd", ["replaced"]),
        ("a &amp; b<br/>", ["html"]),
        ("if a < b && c > d: print('x & y')", []),
        ("São João, NÃO, café, naïve, «Âge», 20 °C, £5, “so” – yes… «voilà…», déjà»…", []),
        ("می‌خواهم 👨‍👩‍👧 हिन्दी", []),
    ],
)
def test_characters_that_should_not_be_there(text, kinds) -> None:
    assert troubles(text) == kinds


@pytest.mark.parametrize("character", "éäöüßñçøåèêîï’“”–—…€™")
def test_utf_8_read_as_another_encoding_is_mojibake(character) -> None:
    assert MOJIBAKE.search(character.encode().decode("latin-1"))
    assert MOJIBAKE.search(character.encode().decode("cp1252", "ignore"))
    assert not MOJIBAKE.search(character)


def test_cleaning_takes_what_cannot_be_seen_and_outer_blanks_only() -> None:
    assert visible("\x1b[1mbold\x1b[0m a\x00b\u200bc\ufeff\u202ed\te\n") == "bold abcd\te\n"
    assert trimmed("\n \n    indented\n  next  \n\n") == "    indented\n  next"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat sat on the mat and looked at what it was given for dinner.", "English"),
        ("Die Katze sitzt auf dem Dach, und der Hund ist nicht mit ihr nach Hause gegangen.", "German"),
        ("Le chat est sur la table et il ne veut pas manger avec nous dans le jardin.", "French"),
        ("El gato está en la mesa y no quiere comer con los niños que son muy ruidosos.", "Spanish"),
        ("Il gatto è sul tavolo e non vuole mangiare con i bambini della scuola, ma anche lui ha fame.", "Italian"),
        ("O gato está em cima da mesa e não quer comer com as crianças, mas isso é normal para um gato.", "Portuguese"),
        ("De kat zit op het dak en de hond is niet met haar naar huis gegaan.", "Dutch"),
        ("Katten sitter på taket och hunden är inte med den, men det är som det ska.", "Swedish"),
        ("Kot jest na dachu i nie chce się bawić z psem, który jest w domu.", "Polish"),
        ("Kedi çatıda ve köpek ile oynamak için çok istekli değil ama bu bir sorun değil.", "Turkish"),
        ("Кошка сидит на крыше", "Cyrillic"),
        ("今日は何をしますか", "Japanese"),
        ("今天天气很好，我们去公园", "Chinese"),
        ("오늘은 날씨가 좋다", "Korean"),
        ("القط على السطح", "Arabic script"),
        ("Η γάτα είναι στη στέγη", "Greek"),
        ("x = f(y) + 3", UNSURE),
        ("42", UNSURE),
        ("", UNSURE),
    ],
)
def test_languages(text, language) -> None:
    assert language_of(normalised(text), words_of(normalised(text))) == language
