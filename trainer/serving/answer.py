"""One answer, token by token: the text as it comes, where it ends, and how many tokens it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.tokens import prompt_ids
from autoft.trainer.evaluation.generate import pad_id
from autoft.trainer.serving.models import Served
from autoft.trainer.serving.protocol import Answer, Question, RequestError

MOST_WITHOUT_CONTEXT = 4096  # tokens of an answer, where the model's configuration names no context
UNFINISHED = "\ufffd"  # what a half of a character decodes to


class ClientGone(Exception):  # noqa: N818 - reads as the sentence it is
    """Nobody reads the answer any more."""


def prompt_of(served: Served, question: Question) -> list[int]:
    """Tokens that ask for the answer, with the system prompt of the training data where the question has none.

    Raises: RequestError where they leave no room for an answer in the model's context, or the chat template refuses.
    """
    talker, voice = served.talker, served.voice
    messages = list(question.messages)
    if voice.system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": voice.system_prompt})
    try:
        ids = prompt_ids(messages, voice.tokenizer)
    except DataError as error:
        raise RequestError(f"messages: {error.what}", param="messages") from None
    context = talker.context
    if context is not None and len(ids) >= context:
        raise RequestError(
            f"messages: {len(ids):,} tokens leave no room in the model's context of {context:,}",
            param="messages",
            code="context_length_exceeded",
        )
    return ids


def answer(
    served: Served,
    question: Question,
    ids: Sequence[int],
    *,
    on_text: Callable[[str], None],
    is_gone: Callable[[], bool],
) -> Answer:
    """Generate the answer to a prompt of token `ids`; on_text is called with each piece of its text.

    is_gone: called after every token; True ends the work. One at a time: it switches the model's adapter.
    Raises: ClientGone when is_gone says so, and what on_text raises.
    """
    import torch
    from transformers import GenerationConfig, StoppingCriteriaList

    talker, voice = served.talker, served.voice
    room = MOST_WITHOUT_CONTEXT if talker.context is None else talker.context - len(ids)
    # 0 and 1.0: transformers would fill in its own defaults, such as a top_k of 50
    sampling: dict[str, Any] = {"do_sample": False}
    if question.temperature > 0:
        sampling = {"do_sample": True, "temperature": question.temperature, "top_p": question.top_p, "top_k": 0}
    settings = GenerationConfig(
        **sampling,
        max_new_tokens=min(question.max_tokens or room, room),
        eos_token_id=voice.stop,
        pad_token_id=pad_id(voice.tokenizer),
    )
    reader = Reader(voice.tokenizer, voice.stop, question.stop, on_text)

    def ends(ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        if is_gone():
            raise ClientGone
        reader.put(int(ids[0, -1]))
        return torch.full((len(ids),), reader.is_over, device=ids.device)

    if question.seed is None:
        torch.seed()
    else:
        torch.manual_seed(question.seed)
    ids_BS = torch.tensor([list(ids)], device=talker.model.device)
    with torch.inference_mode(), served.active():
        talker.model.generate(
            input_ids=ids_BS,
            attention_mask=torch.ones_like(ids_BS),
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList([ends]),
        )
        reader.end()
    return Answer(
        text=reader.text,
        finish_reason="stop" if reader.is_over else "length",
        prompt_tokens=len(ids),
        completion_tokens=len(reader.tokens),
    )


class Reader:
    """Takes tokens one by one, and gives text up to a stop token or a stop text: then `is_over`.

    Text is decoded from the last few tokens, with and without the new one, as a token may be part of a character, and
    its space may depend on the one before.
    """

    def __init__(
        self, tokenizer: Any, stop_ids: Sequence[int], stops: Sequence[str], on_text: Callable[[str], None]
    ) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.is_over = False
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids)
        self._stops = stops
        self._on_text = on_text
        self._start = self._end = 0  # of the tokens that were decoded last
        self._held = ""  # text that may be the begin of a stop text

    def put(self, token: int) -> None:
        """Take the next token; what comes after the end is ignored."""
        if self.is_over:
            return
        self.tokens.append(token)
        if token in self._stop_ids:
            self.is_over = True
            return
        self._take(self._new_text())

    def end(self) -> None:
        """Give what was held back."""
        if self._held:
            self._give(self._held)
            self._held = ""

    def _new_text(self) -> str:
        before = self._decoded(self.tokens[self._start : self._end])
        now = self._decoded(self.tokens[self._start :])
        if len(now) <= len(before) or now.endswith(UNFINISHED):
            return ""
        self._start, self._end = self._end, len(self.tokens)
        return now[len(before) :]

    def _take(self, text: str) -> None:
        held = self._held + text
        places = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if places:
            self.is_over = True
            self._held = held[: min(places)]
            return
        begins = (
            length for length in range(len(held), 0, -1) if any(s.startswith(held[-length:]) for s in self._stops)
        )
        keep = next(begins, 0)
        self._held = held[len(held) - keep :]
        self._give(held[: len(held) - keep])

    def _give(self, text: str) -> None:
        self.text += text
        if text:
            self._on_text(text)

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
