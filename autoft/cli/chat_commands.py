"""A conversation with a model: its messages, and what a line that begins with / does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from autoft.errors import OptionError, near
from autoft.home import write_text

if TYPE_CHECKING:
    from autoft.trainer.data.shape import Message
    from autoft.trainer.evaluation.chat import Talker, Voice

HELP = """/base TEXT        answer as the base does, without the adapter; alone: answer the last message so
/adapter NAME     go on with another adapter on the same base, loaded or in the folder NAME; alone: list those loaded
/reset            forget the conversation
/save FILE        write the conversation as a line of training data (JSON)
/set NAME=VALUE   temperature=0.7 (0 takes the likeliest token), max_new_tokens=256
/help             show this list; an empty line or Ctrl-D ends the conversation"""


@dataclass(slots=True)
class Conversation:
    """Messages so far, and how they are answered. show: is given the text of an answer, piece by piece."""

    talker: Talker
    system: str | None
    max_new_tokens: int
    show: Callable[[str], None]
    temperature: float = 0.0
    messages: list[Message] = field(default_factory=list)

    def say(self, text: str) -> str:
        """Answer `text`. A failed one leaves the conversation as it was. Raises: DataError where it grew too long."""
        answer = self._answer([*self.messages, {"role": "user", "content": text}])
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return answer

    def run(self, line: str) -> str:
        """Do what a line such as "/set temperature=0.7" says; what to tell of it.

        Raises: AutoftError of several kinds, the conversation as it was.
        """
        name, _, rest = line[1:].partition(" ")
        commands: dict[str, Callable[[str], str]] = {
            "base": self._base,
            "adapter": self._adapter,
            "reset": self._reset,
            "save": self._save,
            "set": self._set,
            "help": lambda _: HELP,
        }
        if name not in commands:
            raise OptionError(f"/{name}: not known.{near(name, commands)}", fix="/help lists what there is")
        return commands[name](rest.strip())

    @property
    def _start(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _answer(self, messages: list[Message], *, untrained: bool = False) -> str:
        return self.talker.answer(
            [*self._start, *messages],
            max_new_tokens=self.max_new_tokens,
            on_text=self.show,
            temperature=self.temperature,
            untrained=untrained,
        )

    def answer_base(self, text: str) -> str:
        """The untrained model's answer, which does not become part of the conversation."""
        return self._answer([*self.messages, {"role": "user", "content": text}], untrained=True)

    def _base(self, text: str) -> str:
        if text:
            self.answer_base(text)
        elif self.messages:
            self._answer(self.messages[:-1], untrained=True)  # up to the last question
        else:
            raise OptionError("/base: nothing was asked yet", fix="/base TEXT")
        return ""

    def _adapter(self, folder: str) -> str:
        if not folder:
            return "\n".join(self._listed(voice) for voice in self.talker.voices)
        own_prompt = self.system == self.talker.system_prompt
        named = {voice.name: voice.folder for voice in self.talker.voices}
        self.talker.take_adapter(named.get(folder, Path(folder)))
        if own_prompt:
            self.system = self.talker.system_prompt
        return f"adapter: {folder}"

    def _listed(self, voice: Voice) -> str:
        mark = "*" if voice is self.talker.voice else " "
        return f"{mark} {voice.name}   {voice.folder}"

    def _reset(self, _: str) -> str:
        self.messages.clear()
        return "conversation forgotten"

    def _save(self, name: str) -> str:
        if not name:
            raise OptionError("/save: no file named", fix="/save chat.jsonl")
        path = Path(name)
        if path.exists():
            raise OptionError(f"/save {name}: is there already", fix="/save with another name")
        write_text(path, json.dumps({"messages": [*self._start, *self.messages]}, ensure_ascii=False) + "\n")
        return f"written to {name}"

    def _set(self, setting: str) -> str:
        name, _, value = setting.partition("=")
        try:
            if name == "temperature" and 0 <= float(value) <= 5:
                self.temperature = float(value)
                return f"temperature {self.temperature:g}"
            if name == "max_new_tokens" and int(value) > 0:
                self.max_new_tokens = int(value)
                return f"max_new_tokens {self.max_new_tokens}"
        except ValueError:
            pass
        raise OptionError(
            f"/set {setting}: not a setting with a value of its range",
            fix="/set temperature=0.7 (0 to 5) or /set max_new_tokens=256",
        )
