"""Rows into tokens and labels: only the assistant's answers and the token that stops them are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.shape import Message, Row
from autoft.trainer.loss import IGNORED

# For tokenizers that bring no chat template. Only characters and the tokenizer's own stop token: no new tokens needed.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}### Assistant:\n{{ message['content'] }}{{ eos_token }}\n\n"
    "{% else %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: input_ids and labels of equal length; labels are IGNORED where nothing is trained."""

    input_ids: list[int]
    labels: list[int]

    @property
    def trained_tokens(self) -> int:
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Examples that fit, and the rows (by where) that were left out because they are longer than the context."""

    examples: list[Example]
    too_long: list[str]


def supply_template(tokenizer: Any) -> bool:
    """Give `tokenizer` the plain template if it has none. True if it was needed."""
    if tokenizer.chat_template:
        return False
    tokenizer.chat_template = PLAIN_TEMPLATE
    return True


def tokenize(rows: Sequence[Row], tokenizer: Any, *, max_tokens: int | None = None) -> Tokenized:
    """Token sequences of `rows` under the tokenizer's chat template.

    A conversation longer than max_tokens is left out, since cutting it would cut its answer; a text is cut in pieces.
    Raises: DataError when a row trains nothing or its answers do not end with a stop token, or no row fits.
    """
    examples: list[Example] = []
    too_long: list[str] = []
    lengths: list[int] = []
    for row in rows:
        pieces = (
            _text_pieces(row.text, tokenizer, max_tokens) if row.text is not None else [_conversation(row, tokenizer)]
        )
        lengths.append(max(len(piece.input_ids) for piece in pieces))
        if max_tokens is not None and any(len(piece.input_ids) > max_tokens for piece in pieces):
            too_long.append(row.where)
            continue
        if not any(piece.trained_tokens for piece in pieces):
            raise DataError(
                f"{row.where}: no token of this row would be trained", fix="give it an answer, or remove the row"
            )
        examples.extend(piece for piece in pieces if piece.trained_tokens)
    if not examples:
        raise DataError(
            f"all {len(rows)} rows from {rows[0].where} on are longer than {max_tokens} tokens: {min(lengths)} or more",
            fix="shorter rows, or a longer --seq-len where the model's context allows it",
        )
    return Tokenized(examples, too_long)


def prompt_ids(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Tokens of a conversation up to where the assistant's answer begins: what the model is given to answer."""
    return _render(messages, tokenizer, add_generation_prompt=True)


def stop_ids(tokenizer: Any, model_stop_ids: Sequence[int] = ()) -> list[int]:
    """Tokens that end an answer: the tokenizer's, the model's own, and the one its chat template writes."""
    return sorted({*model_stop_ids, tokenizer.eos_token_id, _template_stop(tokenizer)} - {None})


def model_stop_ids(model: Any) -> list[int]:
    """The stop tokens of a model's own generation settings."""
    stops = model.generation_config.eos_token_id
    return [] if stops is None else stops if isinstance(stops, list) else [stops]


def _conversation(row: Row, tokenizer: Any) -> Example:
    ids = _render(row.messages, tokenizer)
    labels = [IGNORED] * len(ids)
    for turn, message in enumerate(row.messages):
        if message["role"] != "assistant":
            continue
        start = _common_prefix(_render(row.messages[:turn], tokenizer, add_generation_prompt=True), ids)
        end = _common_prefix(_render(row.messages[: turn + 1], tokenizer), ids)
        stop = next((at for at in range(end - 1, start - 1, -1) if _is_special(ids[at], tokenizer)), None)
        if stop is None:
            raise DataError(
                f"{row.where}: the chat template ends an answer without a stop token, so none would be learnt",
                fix="use the tokenizer of the model's chat version, or one whose template writes its eos token",
            )
        labels[start : stop + 1] = ids[start : stop + 1]
    return Example(ids, labels)


def _text_pieces(text: str, tokenizer: Any, max_tokens: int | None) -> list[Example]:
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    size = max_tokens or len(ids)
    pieces = [ids[at : at + size] for at in range(0, len(ids), size)]
    # The first token of a sequence has nothing before it to be predicted from
    return [Example(piece, [IGNORED, *piece[1:]]) for piece in pieces]


def _render(messages: Sequence[Message], tokenizer: Any, *, add_generation_prompt: bool = False) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # jinja raises what the template's author wrote
        roles = ", ".join(m["role"] for m in messages)
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"the model's chat template refuses the roles {roles}: {reason}", fix="change the turns' roles or order"
        ) from error
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _template_stop(tokenizer: Any) -> int | None:
    ids = _render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenizer)
    return next((token for token in reversed(ids) if _is_special(token, tokenizer)), None)


def _is_special(token: int, tokenizer: Any) -> bool:
    return token in tokenizer.all_special_ids or token in tokenizer.added_tokens_decoder


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    for at, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return at
    return min(len(left), len(right))
