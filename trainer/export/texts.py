"""The texts that exports are judged on: held-out rows of the run's own data, or bundled ones if the data are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from autoft.errors import DataError
from autoft.trainer.data.load import load_data
from autoft.trainer.data.shape import Row
from autoft.trainer.data.tokens import Example, tokenize
from autoft.trainer.data.written import chat_of
from autoft.trainer.export.source import Source
from autoft.trainer.objectives.loss import IGNORED

MOST_SCORED = 256  # tokens: llama.cpp computes them one at a time
MOST_ROWS = 8
MOST_TOKENS = 4096  # of all rows together, with their prompts
BUNDLED = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Write the numbers from one to five.", "one, two, three, four, five"),
    ("Summarize: The meeting moved from Monday to Tuesday at noon.", "The meeting is now on Tuesday at noon."),
    ("Translate to German: Good morning!", "Guten Morgen!"),
    ('Return {"ok": true} as JSON.', '{"ok": true}'),
    ("def add(a, b): what does it return?", "It returns the sum of a and b: `return a + b`."),
)
# Texts on which tokenizers are compared: scripts, digits, white space, code, emoji, what chats have
TOKENIZED = (
    "Hello, world! It's 2,026 -- isn't it?", "  leading  and   inner   spaces ", "\n\n\ttabs\tand\r\nlines\n",
    "0123456789 3.14159 1e-5 0xFF 1,000,000", "naïve café Ångström Straße ÀÉÎÕÜ", "Привет, мир! Ένα δύο τρία",
    "你好，世界。今日は良い天気です。안녕하세요", "مرحبا بالعالم שלום עולם हिन्दी ภาษาไทย", "👍🏽 👨‍👩‍👧‍👦 🇩🇪 ✨ ½ ² ™",  # noqa: RUF001
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 2; }", 'def f(x: int) -> str:\n    return f"{x!r}"\n',
    '{"a": [1, 2, {"b": null}], "c": "\\u00e9"}', "https://example.org/path?q=1&r=%20#top", "I'LL we've they'd DON'T",
    "CamelCaseWords snake_case_words kebab-case", "....!!!???,,,;;;:::''\"\"``", "<b>bold</b> &amp; <|not_special|>",
    "a" * 40, "\u200bzero\u200dwidth\ufeff", "x = y² + √2 ≤ ∞ ∑∫ αβγ", "Ünïcödé n\u0303 e\u0301", "１２３ ＡＢＣ",  # noqa: RUF001
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Token sequences. scored: positions in each whose log-prob counts, never 0. origin: where the rows are from.

    written: the first rows as text, as the chat template writes them.
    """

    rows: tuple[tuple[int, ...], ...]
    scored: tuple[tuple[int, ...], ...]
    origin: str
    written: tuple[str, ...] = ()
    note: str | None = None

    @property
    def num_scored(self) -> int:
        """Tokens that are judged."""
        return sum(map(len, self.scored))


def texts_of(source: Source) -> Texts:
    """Rows of the run's held-out data up to MOST_SCORED answer tokens; bundled rows where there are none."""
    note = None
    if source.result is None:
        note = "judged on bundled prompts: the folder names no data"
    else:
        job = source.result.job
        try:
            splits = load_data(str(job.data), job.eval_data, eval_rows=job.eval_rows, mapping=job.mapping)
            if splits.heldout:
                held = tokenize(
                    splits.heldout, source.tokenizer, max_tokens=source.recipe.seq_len, stops=list(source.stops)
                )
                return replace(
                    chosen(held.examples, "held-out rows", None), written=_written(splits.heldout, source.tokenizer)
                )
            note = "judged on bundled prompts: the run held no rows out"
        except DataError as error:
            note = f"judged on bundled prompts: {error.what}"
    rows = _bundled(source.tokenizer)
    examples = tokenize(rows, source.tokenizer).examples
    return replace(chosen(examples, "bundled prompts", note), written=_written(rows, source.tokenizer))


def _written(rows: Sequence[Row], tokenizer: Any) -> tuple[str, ...]:
    """The first rows as text: decoding their tokens would not always give it back."""
    first = rows[:MOST_ROWS]
    return tuple(str(row.text) if row.text is not None else chat_of(tokenizer).write(row).text for row in first)


def _bundled(tokenizer: Any) -> list[Row]:
    if tokenizer.chat_template:
        pairs = [({"role": "user", "content": ask}, {"role": "assistant", "content": say}) for ask, say in BUNDLED]
        return [Row(where=f"bundled:{at}", messages=pair) for at, pair in enumerate(pairs, start=1)]
    return [Row(where=f"bundled:{at}", text=f"{ask}\n{say}") for at, (ask, say) in enumerate(BUNDLED, start=1)]


def chosen(examples: Sequence[Example], what: str, note: str | None) -> Texts:
    """The first rows that the limits allow, short ones first, and of each answer as many tokens, evenly spread."""
    rows: list[tuple[int, ...]] = []
    trained: list[list[int]] = []
    num_tokens = 0
    for example in sorted(examples, key=lambda each: len(each.input_ids) > MOST_TOKENS // MOST_ROWS):
        ids = tuple(example.input_ids[: MOST_TOKENS - num_tokens])
        places = [at for at in range(1, len(ids)) if example.labels[at] != IGNORED]
        if places and len(rows) < MOST_ROWS:
            rows.append(ids)
            trained.append(places)
            num_tokens += len(ids)
    share = MOST_SCORED // max(1, len(rows))
    scored = [tuple(places[:: -(-len(places) // share)]) for places in trained]
    shortened = tuple(ids[: places[-1] + 1] for ids, places in zip(rows, scored, strict=True))
    return Texts(rows=shortened, scored=tuple(scored), origin=f"{len(rows)} {what}", note=note)
