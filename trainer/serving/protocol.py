"""OpenAI's chat completions: what of a request is taken, what is refused and how, and the objects of a reply.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoft.errors import near

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MOST_STOPS = 4
# Taken where they ask for what is done anyway, refused where they ask for more: an option is not ignored
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "tools": ([],),
    "functions": ([],),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class RequestError(Exception):
    """A request that is refused. status: of HTTP. param: the field that is wrong. code: OpenAI's word for the cause."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, param=param, code=code)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A checked request. max_tokens: of the answer, None takes what the context has room for.

    temperature: 0 takes the likeliest token.
    """

    model: str
    messages: tuple[dict[str, str], ...]
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What became of a question. finish_reason: "stop" or "length". completion_tokens: the stop token counts too."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def question_of(body: Any, models: Sequence[str]) -> Question:
    """The question in the body of a request. models: names to choose from.

    Raises: RequestError naming the field that is wrong.
    """
    if not isinstance(body, dict):
        raise RequestError("the body is not a JSON object")
    for name, values in NEUTRAL.items():
        if body.get(name) is not None and body[name] not in values:
            raise RequestError(f"{name}: not supported", param=name, code="unsupported_parameter")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise RequestError("stream_options: not an object", param="stream_options")
    return Question(
        model=_model(body, models),
        messages=_messages(body.get("messages")),
        max_tokens=_integer(body, limit, least=1),
        temperature=_number(body, "temperature", 0.0, 2.0, default=0.0),
        top_p=_number(body, "top_p", 0.0, 1.0, default=1.0),
        seed=_integer(body, "seed", least=-(2**63), most=2**63 - 1),
        stop=_stops(body.get("stop")),
        stream=_flag(body, "stream"),
        include_usage=_flag(options or {}, "include_usage"),
    )


def error_body(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model_object(name: str, created: int) -> dict[str, Any]:
    """One model of `GET /v1/models`. created: seconds since 1970."""
    return {"id": name, "object": "model", "created": created, "owned_by": "autoft"}


@dataclass(frozen=True, slots=True)
class Reply:
    """The objects that answer one question."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The answer at once."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": answer.usage}

    def chunk(self, delta: Mapping[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        """A piece of a stream."""
        choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage(self, answer: Answer) -> dict[str, Any]:
        """The piece of a stream with the counts of its tokens."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": answer.usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _model(body: dict[str, Any], models: Sequence[str]) -> str:
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise RequestError("model: missing", param="model")
    if name not in models:
        raise RequestError(
            f"model {name}: not served.{near(name, models)} Served: {', '.join(models)}",
            param="model",
            code="model_not_found",
        )
    return name


def _messages(messages: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages: not a list with a message in it", param="messages")
    return tuple(_message(message, f"messages.{at}") for at, message in enumerate(messages))


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise RequestError(f"{where}: not an object", param=where)
    role = message.get("role")
    if role not in ROLES:
        raise RequestError(f"{where}.role: not one of {', '.join(ROLES)}", param=f"{where}.role")
    if message.get("tool_calls"):
        raise RequestError(f"{where}.tool_calls: not supported", param=where, code="unsupported_parameter")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(map(_is_text, parts)):
        raise RequestError(f"{where}.content: not text", param=f"{where}.content")
    return {"role": ROLES[role], "content": "".join(part["text"] for part in parts)}


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops):
        raise RequestError("stop: not a text or a list of texts", param="stop")
    if len(stops) > MOST_STOPS:
        raise RequestError(f"stop: {len(stops)} texts, at most {MOST_STOPS} are taken", param="stop")
    return tuple(stops)


def _integer(body: dict[str, Any], name: str, *, least: int, most: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(f"{name}: not an integer", param=name)
    if value < least or (most is not None and value > most):
        raise RequestError(f"{name}: {value} is out of range", param=name)
    return value


def _number(body: dict[str, Any], name: str, least: float, most: float, *, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise RequestError(f"{name}: not a number from {least:g} to {most:g}", param=name)
    return float(value)


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name}: not true or false", param=name)
    return bool(value)
