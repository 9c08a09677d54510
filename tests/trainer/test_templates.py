"""Which chat template a tokenizer without one gets, and that quick tokenizing gives what rendering all does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from autoft.errors import DataError
from autoft.trainer.data.read import RawRow
from autoft.trainer.data.shape import Row, recognise
from autoft.trainer.data.templates import FAMILIES, PLAIN_TEMPLATE, supply_template
from autoft.trainer.data.tokens import prompt_ids, stop_ids, tokenize
from autoft.trainer.objectives.loss import IGNORED

SYSTEM = {"role": "system", "content": "s"}
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]  # fmt: skip


def make(
    *specials: str, template: str | None = None, begins: bool = False, merges: Sequence[tuple[str, str]] = ()
) -> Any:
    """One token a byte, `merges` of two, and special tokens; begins: every text begins with <s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", *specials])
    if begins:
        begin = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=template
    )


# As the families' own chat versions write it, from their model cards
WRITTEN = {
    "ChatML": "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
    "Llama 3": "<|start_header_id|>system<|end_header_id|>\n\ns<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "a<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|>",
    "Granite": "<|start_of_role|>system<|end_of_role|>s<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>a"
    "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>b<|end_of_text|>\n",
    "Phi": "<|system|>\ns<|end|>\n<|user|>\na<|end|>\n<|assistant|>\nb<|end|>\n",
    "Gemma": "<start_of_turn>user\ns\n\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n",
    "Mistral": "[INST]s\n\na[/INST]b</s>",
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_base_model_gets_the_template_of_its_family(family) -> None:
    tokenizer = make(*family.tokens)
    assert supply_template(tokenizer) == family.name
    text = tokenizer.apply_chat_template([SYSTEM, *TALK[:2]], tokenize=False)
    assert text == WRITTEN[family.name]
    (example,) = tokenize([Row("f:1", (SYSTEM, *TALK))], tokenizer).examples
    trained = tokenizer.decode([i for i in example.labels if i != IGNORED], skip_special_tokens=True)
    assert trained == "bd"
    assert example.input_ids[-1] in stop_ids(tokenizer) or example.input_ids[-2] in stop_ids(tokenizer)
    assert tokenizer.decode(prompt_ids(TALK[:1], tokenizer)) in tokenizer.decode(tokenizer(text)["input_ids"]).replace(
        "s\n\n", ""
    )


def test_a_tokenizer_of_no_family_gets_a_plain_template_that_stops() -> None:
    tokenizer = make()
    assert supply_template(tokenizer) == "plain"
    (example,) = tokenize([Row("f:1", tuple(TALK[:2]))], tokenizer).examples
    assert tokenizer.decode([label for label in example.labels if label != IGNORED]) == "b</s>"
    assert supply_template(tokenizer) is None


def test_a_family_s_words_that_are_no_special_tokens_are_not_its_template() -> None:
    tokenizer = make()
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>")])
    assert supply_template(tokenizer) == "plain"
    assert tokenizer.chat_template == PLAIN_TEMPLATE


def test_a_supplied_template_begins_as_the_tokenizer_begins_a_text() -> None:
    tokenizer = make("<start_of_turn>", "<end_of_turn>", begins=True)
    assert supply_template(tokenizer) == "Gemma"
    text = tokenizer.apply_chat_template(TALK[:2], tokenize=False)
    assert text.startswith("<s><start_of_turn>user")
    assert tokenizer(text, add_special_tokens=False)["input_ids"].count(tokenizer.bos_token_id) == 1


def slowly(row: Row, tokenizer: Any) -> tuple[list[int], list[int]]:
    """input_ids and labels by rendering the conversation up to every bound of an answer: the token with its first
    character is trained, up to the last special token before its end.
    """

    def text(messages, **words):
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **words)

    encoded = tokenizer(text(row.messages), add_special_tokens=False, return_offsets_mapping=True)
    whole, places = encoded["input_ids"], encoded["offset_mapping"]
    labels = [IGNORED] * len(whole)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for turn, message in enumerate(row.messages):
        if message["role"] == "assistant":
            begin = len(text(row.messages[:turn], add_generation_prompt=True))
            end = len(text(row.messages[: turn + 1]))
            start = next(at for at, place in enumerate(places) if place[1] > begin)
            stop = max(at for at in range(start, len(whole)) if whole[at] in special and places[at][1] <= end)
            labels[start : stop + 1] = whole[start : stop + 1]
    return whole, labels


TEMPLATES = {
    "plain": ((), PLAIN_TEMPLATE),
    **{family.name: (family.tokens, family.template) for family in FAMILIES},
}
CONTENTS = ("a", "\n b", "hello there", " é🙂\n\n", "x! y", "|eot|", "### User:\n")


@pytest.mark.parametrize("name", TEMPLATES)
def test_quick_tokens_are_those_of_the_slow_way(name) -> None:
    tokens, template = TEMPLATES[name]
    # Merges across the bounds of an answer, where a text's own tokens differ from those of its beginning
    merges = [("Ċ", "Ċ"), ("Ċ", "Ġ"), ("Ċ", "a"), ("n", "t"), (":", "Ċ")]
    tokenizer = make(*tokens, template=template, merges=merges)
    rows = [
        Row(f"f:{n}", tuple({"role": role, "content": contents[at]} for at, role in enumerate(roles)))
        for n, roles in enumerate([("user", "assistant"), ("user", "assistant") * 3, ("system", "user", "assistant")])
        for shift in range(len(CONTENTS))
        for contents in [(CONTENTS * 2)[shift:]]
    ]
    quick = tokenize(rows, tokenizer).examples
    assert [(list(e.input_ids), list(e.labels)) for e in quick] == [slowly(row, tokenizer) for row in rows]


def test_answers_that_are_written_otherwise_once_they_are_not_the_last_are_learnt_as_they_stand() -> None:
    """As Qwen3's template does: thoughts in the last answer only."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}<think>\n\n"
        "{{ m['content'] }}{% else %}{{ m['content'].split('</think>')[-1] | trim }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = make("<|im_start|>", "<|im_end|>", template=template)
    answers = ("<think>well</think> x ", "one<|im_end|>more", "well</think> y")
    turns = [
        {"role": role, "content": text} for answer in answers for role, text in (("user", "a"), ("assistant", answer))
    ]
    (example,) = tokenize([Row("f:1", tuple(turns))], tokenizer).examples
    text = tokenizer.decode([i if i != IGNORED else tokenizer.bos_token_id for i in example.labels])
    learnt = [piece for piece in text.split("<s>") if piece]
    assert learnt == ["x<|im_end|>", "one<|im_end|>more<|im_end|>", "<think>\n\nwell</think> y<|im_end|>"]


def test_a_template_s_refusal_names_the_row() -> None:
    tokenizer = make(
        template="{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}</s>"
    )
    rows = recognise([RawRow({"messages": [SYSTEM, *TALK]}, "f:7")])
    with pytest.raises(DataError, match=r"f:7: the model's chat template refuses the roles system, user, .*no system"):
        tokenize(rows, tokenizer)


def test_a_passage_that_goes_on_has_no_stop_token() -> None:
    tokenizer = make()
    rows = recognise([RawRow({"text": "ab"}, "f:1", goes_on=True), RawRow({"text": "c"}, "f:2")])
    first, second = tokenize(rows, tokenizer).examples
    assert tokenizer.decode(first.input_ids) == "ab"
    assert tokenizer.decode(second.input_ids) == "c</s>"
    assert list(first.labels) == [IGNORED, first.input_ids[1]]
