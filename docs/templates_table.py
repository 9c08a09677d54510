"""Write docs/templates.md: what is trained of ten forms of data under each of TRL's bundled chat templates.

python docs/templates_table.py           writes it
python docs/templates_table.py --check   exits with 1 where the page is not what this would write

No model is needed: a tokenizer of bytes is given the template's own special tokens, and its end tokens as the family's
generation_config.json has them.
"""

from __future__ import annotations

import importlib.resources
import itertools
import os
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

from autoft.errors import AutoftError
from autoft.trainer.data.fit import fit
from autoft.trainer.data.read import RawRow
from autoft.trainer.data.shape import Row, recognise
from autoft.trainer.data.tokens import Example, tokenize
from autoft.trainer.objectives.loss import IGNORED

PAGE = Path(__file__).parent / "templates.md"
# As Qwen's and Llama 3's tokenizers split words: line breaks are together
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = re.compile(
    r"<\|[^|<> ]+\|>|<\uff5c[^\uff5c<>]+\uff5c>|<\|[a-z_]+>|<[a-z_]+\|>|<(?:start|end)_of_[a-z]+>|<image>"
    r"|\[gMASK\]|<sop>"
)
ORDINARY = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
# The family's end tokens, the tokenizer's eos token first. Of the published generation_config.json and tokenizer files
ENDS = {
    "cohere": ("<|END_OF_TURN_TOKEN|>",),
    "deepseek": ("<\uff5cend\u2581of\u2581sentence\uff5c>",),
    "diffusion_gemma": ("<eos>", "<turn|>", "<|tool_response>"),
    "gemma4": ("<eos>", "<turn|>", "<|tool_response>"),
    "gemma": ("<eos>", "<end_of_turn>"),
    "glm4moe": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "gptoss": ("<|return|>", "<|endoftext|>", "<|call|>"),
    "idefics3": ("<end_of_utterance>",),
    "lfm2": ("<|im_end|>",),
    "llama3": ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
    "llava_next": ("</s>",),
    "muse_glimmer": ("<|eot|>",),
    "nemotron": ("<|im_end|>",),
    "phi3": ("<|endoftext|>", "<|end|>", "<|assistant|>"),
    "qwen": ("<|im_end|>", "<|endoftext|>"),
    "smolvlm": ("<end_of_utterance>",),
}
# What templates write of their own into a trained answer: tags, and the channels and recipients of gpt-oss and the like
HEADERS = re.compile(r"<[^<>]*>|\b(?:thought|analysis|final|assistant|to=self|to=user)\b")
CALL = {"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": {"city": "Lisbon"}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def _talk(*turns: Any, **others: Any) -> dict[str, Any]:
    """Turns as texts, the user's first, or whole."""
    roles = itertools.cycle(("user", "assistant"))
    return {"messages": [t if isinstance(t, dict) else {"role": next(roles), "content": t} for t in turns], **others}


def _turn(role: str, content: str | None, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


THOUGHT = "<think>\n{}\n</think>\n\n{}"
ASK = _turn("user", "How warm is it in Lisbon?")
RESULT = _turn("tool", '{"temp": 20}', tool_call_id="call00001", name="weather")
FORMS: dict[str, dict[str, Any]] = {
    "one turn": _talk("What is 2 times 3?", "It is 6."),
    "two turns": _talk("What is 2 times 3?", "It is 6.", "And plus one?", "That is 7."),
    "system": {
        "messages": [_turn("system", "Be brief."), _turn("user", "What is 2 times 3?"), _turn("assistant", "It is 6.")]
    },
    "thought": _talk("What is 2 times 3?", THOUGHT.format("2+2+2", "It is 6.")),
    "thoughts": _talk(
        "What is 2 times 3?", THOUGHT.format("2+2+2", "It is 6."), "And one?", THOUGHT.format("6+1", "That is 7.")
    ),
    "reasoning": {
        "messages": [_turn("user", "What is 2 times 3?"), _turn("assistant", "It is 6.", reasoning_content="2+2+2")]
    },
    "call": {
        "messages": [ASK, _turn("assistant", None, tool_calls=[CALL]), RESULT, _turn("assistant", "It is 20 degrees.")],
        "tools": TOOLS,
    },
    "call last": {"messages": [ASK, _turn("assistant", "One moment.", tool_calls=[CALL])], "tools": TOOLS},
    "not trained": {
        "messages": [
            _turn("user", "Where is Oslo?"), _turn("assistant", "Go away.", train=False),
            _turn("user", "Be nice."), _turn("assistant", "In Norway.", train=True),
        ]
    },
    "text": {"text": "Lisbon is the capital of Portugal."},
}  # fmt: skip
HEAD = """# What is trained under which chat template

Made by `python docs/templates_table.py` (`make readme`): do not edit. Every chat template that TRL {version} brings,
with ten forms of data.

- **right**: the trained tokens, decoded, are each answer's text and then a token at which the model stops. This page
  checks it apart from the gate in the trainer. The numbers say what is to know besides; a run says it too, with counts.
- **refused**: there is no run, for the reason with that number.

There is no third outcome.

The forms: one turn; two turns; with a system turn; a thought in the text of the answer (`<think>`); one in each of two
answers; a thought as `reasoning_content`; a call of a tool, its result and an answer; a call beside a text as the last
turn; an answer that is not to be trained before one that is; a plain text.
"""


def page() -> str:
    """The whole text of the page."""
    from trl import __version__

    reasons: dict[str, int] = {}
    lines = []
    for file in sorted(importlib.resources.files("trl").joinpath("chat_templates").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".jinja"):
            cells = [cell(file.name, file.read_text(encoding="utf-8"), fields, reasons) for fields in FORMS.values()]
            lines.append(f"| {file.name.removesuffix('.jinja')} | {' | '.join(cells)} |")
    table = "\n".join([f"| template | {' | '.join(FORMS)} |", "|---" * (len(FORMS) + 1) + "|", *lines])
    return "\n".join([HEAD.format(version=__version__), table, "", *(f"{n}. {why}" for why, n in reasons.items()), ""])


def cell(name: str, template: str, fields: dict[str, Any], reasons: dict[str, int]) -> str:
    """One outcome. Raises: AssertionError where what would be trained is neither right nor refused."""

    def number(why: str) -> str:
        return str(reasons.setdefault(why, len(reasons) + 1))

    tokenizer, stops = tokenizer_for(name, template)
    tokenizer.chat_template = template
    (row,) = recognise([RawRow(fields, "row")])
    try:
        notes = fit(tokenizer, [row], stops=stops, model="the model")
        done = tokenize([row], tokenizer, stops=stops)
    except AutoftError as error:
        return f"refused ({number(error.what.removeprefix('row: '))})"
    (example,) = done.examples
    said = [*notes, *(fact.format(n="some") for fact in done.facts)]
    wrong = fault(row, example, tokenizer, {*stops, tokenizer.eos_token_id}, said)
    assert wrong is None, f"{name}, {fields}: {wrong}"
    return "right" + (f" ({', '.join(map(number, said))})" if said else "")


@lru_cache(1)
def tokenizer_for(name: str, template: str) -> tuple[Any, list[int]]:
    """(a tokenizer of bytes with the template and the tokens in it, the ids of the family's end tokens)."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ends = next(ends for family, ends in ENDS.items() if name.startswith(family))
    vocab = {token: at for at, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("Ċ", "Ċ")]))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    special = dict.fromkeys(["<bos>", *ends, *SPECIAL.findall(template)])
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special if t not in ORDINARY])
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in ORDINARY])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<bos>", eos_token=ends[0], pad_token=ends[-1], chat_template=template
    )
    return tokenizer, [tokenizer.convert_tokens_to_ids(end) for end in ends]


def fault(row: Row, example: Example, tokenizer: Any, stops: set[int], said: list[str]) -> str | None:
    """What is wrong with what is trained; None where it is right. Made of the labels alone."""
    if row.text is not None:
        return None if tokenizer.decode(example.labels[1:]) == row.text[1:] + tokenizer.eos_token else "not the text"
    spans = list(trained_spans(example))
    answers = [m for m in row.messages if m["role"] == "assistant" and m.get("train", True)]
    if len(spans) != len(answers):
        return f"{len(spans)} trained answers instead of {len(answers)}"
    for message, (ids, stop) in zip(answers, spans, strict=True):
        if stop not in stops:
            return f"ends with {tokenizer.convert_ids_to_tokens(stop)}"
        text = tokenizer.decode(ids)
        thought, content = _thought(message)
        expected = [content] if content else []
        for call in message.get("tool_calls", ()):
            expected += [call["function"]["name"], *map(str, call["function"]["arguments"].values())]
        dropped = [part for part in expected if part not in text]
        if dropped and not (dropped == [content] and any("beside" in fact for fact in said)):
            return f"{dropped} is not trained: {text!r}"
        if thought and thought not in text and not any("reasoning" in fact for fact in said):
            return f"the thought is not trained: {text!r}"
        if not message.get("tool_calls") and not re.sub(r"(<[^<>]*>|\s)*\Z", "", text).endswith(content):
            return f"more than the answer is trained: {text!r}"
        frame = text.replace(content, "").replace(thought or "", "")
        if not message.get("tool_calls") and re.search(
            r"[A-Za-z]{2,}", re.sub(r"<[^<>]*>|thought|analysis|final|assistant|to=|self|user", "", frame)
        ):
            return f"more than the answer is trained: {text!r}"
        others = (m["content"] for m in row.messages if m is not message and m["content"])
        if any(other in text for other in others):
            return f"another turn is trained: {text!r}"
    return None


def trained_spans(example: Example) -> Iterator[tuple[list[int], int]]:
    """The tokens of each trained run, and the last of them apart."""
    for trained, run in itertools.groupby(example.labels, key=lambda label: label != IGNORED):
        if trained:
            *ids, stop = run
            yield ids, stop


def _thought(message: dict[str, Any]) -> tuple[str | None, str]:
    content = message["content"]
    if "</think>" in content:
        thought, content = content.split("</think>")
        return thought.removeprefix("<think>").strip(), content.strip()
    return message.get("reasoning_content"), content


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        return int(text != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
