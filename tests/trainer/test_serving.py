"""What a server takes of a request, and the text that it makes of tokens."""

from __future__ import annotations

from typing import Any

import pytest

from autoft.errors import OptionError
from autoft.trainer.serving.answer import Reader
from autoft.trainer.serving.protocol import Question, RequestError, question_of
from autoft.trainer.serving.server import Server, is_loopback
from tests.conftest import make_tokenizer

ASK = {"model": "a", "messages": [{"role": "user", "content": "Hello!"}]}
TEXT = "naïve é 😀 end.\n Then more"


def read(text: str, *, stops: tuple[str, ...] = (), ends: bool = True) -> tuple[Reader, list[str]]:
    """A reader that was given the tokens of `text`, and the pieces that it gave."""
    tokenizer = make_tokenizer()
    pieces: list[str] = []
    reader = Reader(tokenizer, [tokenizer.eos_token_id], stops, pieces.append)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * ends
    for token in ids:
        reader.put(token)
    reader.end()
    return reader, pieces


def test_pieces_are_whole_characters_and_together_the_text() -> None:
    reader, pieces = read(TEXT)
    assert "".join(pieces) == reader.text == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) == len(TEXT)
    assert reader.is_over
    assert len(reader.tokens) == len(TEXT.encode()) + 1
    assert not read(TEXT, ends=False)[0].is_over


@pytest.mark.parametrize(
    ("stops", "text"), [(("end.",), "naïve é 😀 "), (("\n Th", "é"), "naïve "), (("more?",), TEXT)]
)
def test_no_piece_shows_a_stop_text_or_its_begin(stops: tuple[str, ...], text: str) -> None:
    reader, pieces = read(TEXT, stops=stops)
    assert "".join(pieces) == reader.text == text


def test_what_a_request_may_say() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]
    body: dict[str, Any] = {
        **ASK,
        "messages": [{"role": "developer", "content": "Be short."}, {"role": "user", "content": parts}],
        "max_tokens": 3, "max_completion_tokens": 5, "temperature": 1, "top_p": 0.5, "seed": 7, "stop": "x",
        "stream": True, "stream_options": {"include_usage": True}, "n": 1, "user": "me", "presence_penalty": 0,
    }  # fmt: skip
    assert question_of(body, ["a"]) == Question(
        model="a",
        messages=({"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello!"}),
        max_tokens=5, temperature=1.0, top_p=0.5, seed=7, stop=("x",), stream=True, include_usage=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": "b"}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": ["Hello!"]}, "messages.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": "1"}, "top_p"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": list("abcde")}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"n": 2}, "n"),
        ({"tools": [{}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_is_refused_names_its_field(change: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        question_of({**ASK, **change}, ["a"])
    assert refused.value.status == 400
    assert refused.value.body["error"]["param"] == param


def test_an_address_that_cannot_be_had() -> None:
    first = Server("127.0.0.1", 0)
    first.server_activate()
    port = first.server_address[1]
    with pytest.raises(OptionError, match="Address already in use"):
        Server("127.0.0.1", int(port))
    first.server_close()
    with pytest.raises(OptionError, match=r"no\.such\.host\.invalid:8000"):
        Server("no.such.host.invalid", 8000)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("", False)],
)
def test_which_addresses_only_this_machine_reaches(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local
