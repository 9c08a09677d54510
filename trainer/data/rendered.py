"""What texts hold that is no text: chats that a template has rendered already, stop tokens, places of pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.conversation import ROLES, Message
from autoft.trainer.data.notes import Notes


@dataclass(frozen=True, slots=True)
class Form:
    """How a family writes turns. begin: before a turn, its role as group 1. end: after it."""

    name: str
    begin: re.Pattern[str]
    end: re.Pattern[str]


# Sources: the chat templates of Qwen 2.5, Llama 3.1, Llama 4, Gemma 3, Gemma 4, Granite 3, Zephyr and Phi-3
FORMS = (
    Form("ChatML", re.compile(r"<\|im_start\|>(\w+)\n"), re.compile(r"<\|im_end\|>")),
    Form(
        "Llama 3",
        re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n*"),
        re.compile(r"<\|eot_id\|>|<\|end_of_text\|>"),
    ),
    Form("Llama 4", re.compile(r"<\|header_start\|>(\w+)<\|header_end\|>\n*"), re.compile(r"<\|eot\|>")),
    Form("Gemma", re.compile(r"<start_of_turn>(\w+)\n"), re.compile(r"<end_of_turn>")),
    Form("Gemma 4", re.compile(r"<\|turn>(\w+)\n"), re.compile(r"<turn\|>")),
    Form("Granite", re.compile(r"<\|start_of_role\|>(\w+)<\|end_of_role\|>"), re.compile(r"<\|end_of_text\|>")),
    Form("Phi", re.compile(r"<\|(system|user|assistant)\|>\n?"), re.compile(r"<\|end\|>|</s>|<\|endoftext\|>")),
    Form("Human and Assistant", re.compile(r"(?:\A|\n\n)(Human|Assistant):[ \n]?"), re.compile(r"\Z")),
    Form("DeepSeek", re.compile(r"<\uff5c(User|Assistant)\uff5c>"), re.compile(r"<\uff5cend▁of▁sentence\uff5c>")),
)
MISTRAL = re.compile(
    r"\s*\[INST\]\s*(?:<<SYS>>\n?(?P<system>.*?)\n?<</SYS>>\s*)?(?P<user>.*?)\s*\[/INST\]\s?(?P<answer>.*?)(?:</s>|(?=<s>)|\Z)",
    re.DOTALL,
)
BOS = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<\uff5cbegin▁of▁sentence\uff5c>|\[gMASK\]<sop>)"
)
# Tokens that end a text or an answer
STOP = re.compile(
    r"(?:<\|im_end\|>|<\|endoftext\|>|<\|end_of_text\|>|<\|eot_id\|>|<\|eot\|>|<\|eom_id\|>|<end_of_turn>|<turn\|>|<eos>"
    r"|</s>|<\|end\|>|<\|return\|>|<\uff5cend▁of▁sentence\uff5c>|<\|endofprompt\|>|\[EOS\])\s*\Z"
)
TEXT_STOP = re.compile(r"(?:<\|endoftext\|>|<\|end_of_text\|>|<eos>|</s>|<\uff5cend▁of▁sentence\uff5c>)\s*\Z")
MARKER = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|end_header_id|eot_id|endoftext|begin_of_text|end_of_text|start_of_role|end_of_role"
    r"|header_start|header_end|eot|user|assistant|system|end|start|channel|return|turn)\|?>|<turn\|>"
    r"|<(?:start|end)_of_turn>|\[/?INST\]|<\uff5c(?:User|Assistant|begin▁of▁sentence|end▁of▁sentence)\uff5c>"
)
FRAME = re.compile(r"### (?:Instruction|Response|Input|Human|Assistant|User|Question|Answer)\s*:")
PICTURE = re.compile(
    r"\A\s*<(?:image|audio|video|speech)>|<(?:image|audio|video|speech)>\s*\Z"
    r"|^[ \t]*<(?:image|audio|video|speech)>[ \t]*$|<(?:img|audio|video)>[^<>\n]*</(?:img|audio|video)>"
    r"|<\|(?:image|audio|video)(?:_\w+)?\|>|<\|vision_(?:start|end)\|>|<start_of_image>|<image_soft_token>|\[IMG\]"
    r"|<__media__>|<image_placeholder>|<(?:image|picture)[-_ ]?\d+>",
    re.MULTILINE | re.IGNORECASE,
)
STRUCK = re.compile(r"</s>(?!\s*(?:\Z|<s>))")  # <s>HTML that is struck out</s>, and no token
ASKS = re.compile(
    r"(?:^|\n)\W{0,6}(?:response|assistant|answer|output|ai|a|bot|model|gpt)\W{0,3}:\W{0,3}\Z", re.IGNORECASE
)
# Columns of pictures and sounds, or of where they are
MEDIA = re.compile(
    r"(?:image|img|picture|photo|screenshot|audio|video|speech|sound|frame|pixel_value)s?"
    r"(?:_?(?:path|file|filename|url|uri|id|byte|data|b64|base64|\d+)s?)?",
    re.IGNORECASE,
)
MEDIA_FILE = re.compile(
    r"^data:|^https?://|\.(?:jpe?g|png|webp|gif|bmp|tiff?|wav|mp3|flac|ogg|m4a|mp4|webm|avi|mkv)\b", re.I
)
WORDS_OF_TEXT = 4  # so many words are a speech as text, or a picture's description

STOPS_LEFT_OUT = "stop tokens that answers end with as text are left out: the chat template writes its own"
BOS_LEFT_OUT = "bos tokens that texts begin with are left out: the tokenizer writes its own"
MARKERS = "texts hold tokens of chat templates, such as <|im_end|>, which are trained as such"
FRAMED = (
    'texts hold a frame of their own, such as "### Instruction:" or "Answer:", which the chat template frames again: '
    "ask with it later, or remove it"
)
TEXT_STOPS_LEFT_OUT = "stop tokens that texts end with are left out: the tokenizer's own is trained"
RENDERED_TEXT = "texts are chats that a template has rendered: all of a text is trained, its prompts too"


def media_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """The columns that are called as pictures and sounds are."""
    return tuple(name for name in columns if MEDIA.fullmatch(name))


def refuse_media(where: str, fields: dict[str, Any], columns: Sequence[str], notes: Notes) -> None:
    """Note the columns that hold a text about a picture. Raises: DataError where one holds a picture or its place."""
    for name in columns:
        value = fields.get(name)
        if value in (None, "", [], {}):
            continue
        if isinstance(value, str) and len(value.split()) >= WORDS_OF_TEXT and not MEDIA_FILE.search(value):
            notes.unused.append(name)
            continue
        raise DataError(
            f"{where}: its column {name} stands for a picture or a sound, and autoft trains on text alone",
            fix=f"leave such rows out; if the text needs no {name}, remove that column, or name the others with --map",
        )


def turns_of(text: str) -> tuple[str, list[Message]] | None:
    """(the form's name, its turns) of a chat that a template has rendered, whole; None of any other text.

    The answer that a prompt ends with a request for is an empty assistant turn.
    """
    begun = BOS.match(text)
    rest = text[begun.end() :] if begun else text
    if "[INST]" in rest and (turns := _mistral(rest)):
        return "Mistral", turns
    for form in FORMS:
        if form.begin.match(rest.lstrip()) is not None:
            turns = _turns(rest.lstrip(), form)
            return (form.name, turns) if turns else None
    return None


def _turns(text: str, form: Form) -> list[Message] | None:
    begins = list(form.begin.finditer(text))
    turns: list[Message] = []
    for at, begin in enumerate(begins):
        last = at + 1 == len(begins)
        piece = text[begin.end() : len(text) if last else begins[at + 1].start()]
        end = form.end.search(piece)
        role = ROLES.get(begin[1].lower())
        if role in (None, "call") or (
            end and piece[end.end() :].strip() and form.end.sub("", piece[end.end() :]).strip()
        ):
            return None
        turns.append({"role": role, "content": piece[: end.start()] if end else piece if last else piece.rstrip("\n")})
    return turns


def _mistral(text: str) -> list[Message] | None:
    turns: list[Message] = []
    at = 0
    while text[at:].strip():
        begun = BOS.match(text, at)
        match = MISTRAL.match(text, begun.end() if begun else at)
        if match is None:
            return None
        if match["system"]:
            turns.append({"role": "system", "content": match["system"]})
        turns += [{"role": "user", "content": match["user"]}, {"role": "assistant", "content": match["answer"]}]
        at = match.end()
    return turns


def unrendered(prompt: str, answer: str, notes: Notes) -> list[Message] | None:
    """The turns of a prompt that a template has rendered, and its answer; None where the prompt is a text."""
    whole, begun = turns_of(prompt + answer), turns_of(prompt)
    if begun is None:
        return None
    name, turns = begun
    if whole is not None and whole[1][-1]["role"] == "assistant":
        turns = whole[1]
    elif turns[-1]["role"] == "user":  # without a request for the answer
        turns = [*turns, {"role": "assistant", "content": answer}]
    else:
        return None
    notes.remark(f"prompts were rendered already ({name}): they are read as the turns that they are of")
    return turns


def tidied(where: str, messages: Sequence[Message], notes: Notes) -> None:
    """Take stop tokens off the answers and bos tokens off the prompts that have them as text; note other markers.

    Raises: DataError where a prompt has a place for a picture or a sound in it, such as <image>.
    """
    for number, message in enumerate(messages, start=1):
        text = message["content"]
        if "<" in text or "[" in text:
            if message["role"] == "assistant":
                message["content"] = _without_stop(text, notes)
                if not message["content"].strip() and text.strip():
                    raise DataError(
                        f"{where}: turn {number}, an answer, is a stop token alone", fix="fill it in, or remove the row"
                    )
            else:
                _refuse_places_of_media(where, number, text)
                message["content"] = _without_bos(text, notes)
            if MARKER.search(message["content"]):
                notes.remark(MARKERS)
        if "### " in text or ":" in text[-4:]:
            framed = FRAME.match(text) if message["role"] == "assistant" else FRAME.search(text) or ASKS.search(text)
            if framed and message["role"] in ("user", "assistant"):
                notes.remark(FRAMED)


def plain(text: str, notes: Notes) -> str:
    """A text to train on as it is, without the bos and stop token that its tokenizer writes."""
    if "<" not in text and "[" not in text and "### " not in text:
        return text
    text = _without_bos(text, notes)
    if (stop := TEXT_STOP.search(text)) and "<s>" not in text:
        text = text[: stop.start()]
        notes.remark(TEXT_STOPS_LEFT_OUT)
    if MARKER.search(text) or len(FRAME.findall(text)) > 1:
        notes.remark(RENDERED_TEXT)
    return text


def _refuse_places_of_media(where: str, number: int, text: str) -> None:
    place = PICTURE.search(text)
    if (
        place is not None
        and (word := re.search(r"\w+", place[0]))
        and f"</{word[0]}>" not in text.replace(place[0], "")
    ):
        raise DataError(
            f"{where}: turn {number} has {place[0].strip()} in it, which stands for a picture or a sound, and autoft "
            "trains on text alone",
            fix="leave such rows out",
        )


def _without_stop(text: str, notes: Notes) -> str:
    while (stop := STOP.search(text)) and not ("</s>" in stop[0] and "<s>" in text):
        text = text[: stop.start()]
        notes.remark(STOPS_LEFT_OUT)
    return text


def _without_bos(text: str, notes: Notes) -> str:
    begun = BOS.match(text)
    if begun is None or STRUCK.search(text):
        return text
    notes.remark(BOS_LEFT_OUT)
    return text[begun.end() :]
