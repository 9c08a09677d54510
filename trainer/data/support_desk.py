"""What does `autoft run` fine-tune on when given nothing? Support-desk messages, and the JSON a program wants of them.

Every field of the answer can be read off the message, by these rules:

    category      delivery  a parcel is late, lost or at the wrong place
                  billing   a charge, an invoice or a fee is wrong
                  defect    the product does not work as it should
                  return    the product works, and the customer sends it back
                  account   logging in, or what the profile says
                  question  asked before buying
    urgency       high: the customer sets a deadline; low: says there is no hurry; normal: neither
    product       the one the message is about, never one named only beside it; null where none is named
    order_number  as written after the word "order"; null where there is none; never a ticket, a phone, an amount ...
    wish          what the customer asks for: refund, replacement, repair, information, cancellation or callback
    customer      the writer's own name, never a colleague's; null where the message is not signed

Typos fall on ordinary words only, never on what an answer repeats.
"""

import itertools
import json
import pathlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from autoft.home import write_text

Row: TypeAlias = dict[str, list[dict[str, str]]]

SYSTEM = "Turn the support message into JSON."
FIELDS: tuple[str, ...] = ("category", "urgency", "product", "order_number", "wish", "customer")

TRAIN_FILE = "support-desk-train.jsonl"
HELDOUT_FILE = "support-desk-heldout.jsonl"


def generate(*, seed: int = 0, train_rows: int = 400, heldout_rows: int = 100) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows, in the chat form `{"messages": [system, user, assistant]}`.

    The two share no order number, no customer, and no combination of sentences and slot values; neither repeats one.
    The held-out rows depend on `seed` and `heldout_rows` alone, so a larger training set is judged by the same rows.
    Raises: ValueError if a row count is not positive.
    """
    train, heldout = _draw_splits(seed=seed, train_rows=train_rows, heldout_rows=heldout_rows)
    return [_row(draw) for draw in train], [_row(draw) for draw in heldout]


def write(folder: pathlib.Path, *, seed: int = 0) -> tuple[pathlib.Path, pathlib.Path]:
    """Write the default-sized splits into `folder` as UTF-8 JSONL; returns the train path, then the held-out path.

    A file already there with the same bytes is left alone; any other is replaced whole.
    Raises: OSError if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, heldout = generate(seed=seed)
    train_path, heldout_path = folder / TRAIN_FILE, folder / HELDOUT_FILE
    _write_whole(train_path, _jsonl(train))
    _write_whole(heldout_path, _jsonl(heldout))
    return train_path, heldout_path


# --- what a message is made of -------------------------------------------------------------------------------------
# Sentences are templates. {thing} is the product, or a word that names none; {order} and {customer} are the answer's;
# any other slot is a choice from `_FILLERS`. Everywhere "#" stands for a digit and "@" for a letter.

_PROBLEMS: dict[str, tuple[str, ...]] = {
    "delivery": (
        "My {thing}, due on {date}, has not arrived.",
        "The {thing} was meant to come on {date} but never did.",
        "For {days} days my {thing} has been 'in transit'.",
        "Your site says the {thing} was delivered, but it was not.",
        "The driver left my {thing} with some neighbour.",
        "The {thing} seems to be lost in the post.",
        "The courier took my {thing} to my old address.",
        "It is {days} days since you shipped my {thing}.",
    ),
    "billing": (
        "My card was charged {amount} twice for the {thing}.",
        "The invoice for my {thing} says {amount}, but your site quoted less.",
        "My {amount} discount on the {thing} was ignored.",
        "I cannot explain the {amount} on my card statement.",
        "You debit {amount} a month for a plan I never chose.",
        "The bill for the {thing} adds {amount} in hidden fees.",
        "You billed me {amount} extra to ship the {thing}.",
        "You overcharged me by {amount} for the {thing}.",
    ),
    "defect": (
        "My {thing} died after only {days} days.",
        "The {thing} makes a grinding noise and smells burnt.",
        "Since {date} the {thing} turns itself off after a minute.",
        "One button on my {thing} is stuck.",
        "The {thing} came out of its box cracked.",
        "My {thing} only runs while I hold the cable.",
        "My {thing} shows error {error} and stops.",
        "The {thing} gets far too hot and shuts down.",
    ),
    "return": (
        "The {thing} works but is too big, so I send it back.",
        "I changed my mind and am returning the {thing} unopened.",
        "We already own the {thing}, so this one goes back.",
        "The colour of the {thing} does not suit us, so back it goes.",
        "I picked the wrong {thing} and will send it back sealed.",
        "Nothing is wrong with the {thing}, but I hand it back.",
        "The {thing} is fine but loud, so I am returning it.",
        "After {days} days I am returning the {thing} unused.",
    ),
    "account": (
        "I cannot log in, because my password is refused.",
        "The link to reset my password never reaches my inbox.",
        "My profile still shows an old address.",
        "After {few} wrong attempts my login is locked.",
        "The login code goes to my old phone.",
        "I cannot register my {thing}, as my email is already taken.",
        "The app logs me out when I add my {thing}.",
        "My {thing} is listed in the wrong user profile.",
    ),
    "question": (
        "Before I buy the {thing}: does it run on {volts} volts?",
        "Does the {thing} come with a spare cable?",
        "I may buy the {thing}; how much does it weigh?",
        "Will the {thing} be in stock again in {month}?",
        "How long would the warranty on the {thing} be?",
        "Is the {thing} quiet enough for a bedroom?",
        "Which colours does the {thing} come in?",
        "Is there a better price for {few} of the {thing}?",
    ),
}

# Which wishes a category allows, and how often: weights chosen so that over all categories the wishes come out alike.
_WISH_WEIGHTS: dict[str, dict[str, float]] = {
    "delivery": {"refund": 0.20, "replacement": 0.30, "information": 0.15, "cancellation": 0.20, "callback": 0.15},
    "billing": {"refund": 0.40, "information": 0.20, "cancellation": 0.25, "callback": 0.15},
    "defect": {"refund": 0.05, "replacement": 0.15, "repair": 0.75, "callback": 0.05},
    "return": {"refund": 0.35, "replacement": 0.40, "information": 0.10, "callback": 0.15},
    "account": {"information": 0.25, "cancellation": 0.50, "callback": 0.25},
    "question": {"information": 0.70, "callback": 0.30},
}

_WISHES: dict[str, tuple[str, ...]] = {
    "refund": (
        "Please transfer the money back.",
        "I would like a full refund.",
        "I want my money back.",
        "Kindly reimburse me.",
        "Could you pay me back?",
        "I expect you to refund me.",
        "Repay the sum, please.",
    ),
    "replacement": (
        "Please send me a new one instead.",
        "I would like it exchanged.",
        "Could you ship another one?",
        "Can I have a replacement?",
        "Please swap it for a different one.",
        "All I ask for is a substitute.",
        "Kindly replace it.",
    ),
    "repair": (
        "Could a technician fix it?",
        "I would like to have it repaired.",
        "Please mend it.",
        "Could your workshop put it right?",
        "Please get it working again.",
        "I want it fixed, not thrown away.",
        "Kindly book me a repair.",
    ),
    "information": (
        "Could you explain this to me?",
        "Please let me know.",
        "I just want to know more.",
        "Can you tell me in writing?",
        "Please write me an email.",
        "I would like an explanation.",
        "All I need is some information.",
    ),
    "cancellation": (
        "Please cancel everything.",
        "I want to end our contract.",
        "Kindly call it all off.",
        "I no longer want any of it.",
        "Consider our contract cancelled.",
        "I hereby cancel.",
        "Please take me off the books.",
    ),
    "callback": (
        "Please ring me on {phone}.",
        "Could somebody call me back?",
        "I would rather talk, so ring me.",
        "Please have your staff phone me.",
        "Give me a call on {phone}.",
        "Can an adviser ring me back?",
        "Please telephone me.",
    ),
}

# Few ways of saying it, each with many endings: 400 rows teach the cue, and held-out rows still combine it anew.
# Both ways name days, as do problems and asides, so a day alone does not give the urgency away.
_URGENCIES: dict[str, tuple[str, ...]] = {
    "high": ("This is urgent, I need it {deadline}.", "Please hurry, it must be done {deadline}."),
    "low": ("There is no rush, {patience}.", "Take your time, {patience}."),
    "normal": ("",),
}

# Distractors: a number that is no order number, a name that is not the customer's, a product that is not the one meant.
_ASIDES: tuple[str, ...] = (
    "My customer number is #####.",
    "{agent} gave me ticket #####.",
    "I spoke to {agent} on {weekday}.",
    "My postcode is #####.",
)
_ASIDES_OF_CATEGORY: dict[str, tuple[str, ...]] = {
    "delivery": ("I paid {amount}.", "The tracking code is @@######."),
    "billing": ("The invoice is R-202#-###.", "My card ends in ####."),
    "defect": ("I paid {amount} on {date}.", "The serial number is @@######."),
    "return": ("I paid {amount}.", "The invoice R-202#-### is in the box."),
    "account": ("The error page shows code #####.",),
    "question": ("My budget is {amount}.",),
}
# Only where the message's own product is named, so that there is no doubt which of the two is meant.
_ASIDES_ABOUT_ANOTHER: tuple[str, ...] = (
    "My old {product} was fine.",
    "A friend is happy with her {product}.",
    "My sister owns the {product}.",
)

_ORDER_SENTENCES: tuple[str, ...] = (
    "My order number is {order}.",
    "It was order {order}.",
    "You know me from order {order}.",
    "Order no. {order}.",
    "I placed order {order}.",
)

_FRAMES: tuple[str, ...] = (
    "{body}",
    "Hello, {body}",
    "Hi, {body}",
    "{body} Thanks!",
    "My name is {customer}. {body}",
    "Hello, this is {customer}. {body}",
    "{customer} here. {body}",
    "{body} Regards, {customer}",
    "{body} Best wishes, {customer}",
    "Hi, {body} Thank you, {customer}",
    "{body} Sincerely, {customer}",
    "{body}\n{customer}",
    "Hi, {body} - {customer}",
    "Hello, {body} Cheers, {customer}",
)

_FIRST_NAMES = (
    "Amira", "Léa", "Jonas", "Yuki", "Mateo", "Ingrid", "Kwame", "Priya", "Tomasz", "Chloe", "Nikos", "Fatima",
    "Björn", "Lucía", "Tunde", "Hannah", "Wei", "Dmitri", "Aoife", "Rafael", "Zeynep", "Samuel", "Noor", "Elena",
    "Piotr", "Grace", "Hiroshi", "Camille", "Sipho", "Marta", "Ali", "Freya", "Diego", "Thandi", "Viktor", "Mei",
)  # fmt: skip
_LAST_NAMES = (
    "Okafor", "Fontaine", "Müller", "Tanaka", "García", "Lindqvist", "Mensah", "Sharma", "Kowalski", "Bennett",
    "Papadakis", "Haddad", "Sørensen", "Romero", "Adeyemi", "Fischer", "Zhang", "Ivanov", "Murphy", "Silva",
    "Çelik", "Carter", "Rahman", "Popescu", "Nowak", "Whitfield", "Sato", "Moreau", "Dlamini", "Costa", "Novák",
    "Andersen", "Castillo", "van Dijk", "O'Brien", "Chen",
)  # fmt: skip

_FILLERS: dict[str, tuple[str, ...]] = {
    "product": ("{brand} {kind}", "{brand} {kind}", "{brand} {model} {kind}"),
    "brand": (
        "Nordlys", "Otter", "Lumio", "Veld", "Tamarin", "Sørbø", "Ibis", "Onda", "Hoshi", "Brava",
        "Dune", "Minari", "Château", "Pico", "Oslo", "Marula", "Fjord", "Arrow", "Kobo", "Selva",
    ),
    "model": ("2", "300", "Mini", "Pro", "X5", "Plus"),
    "kind": (
        "Kettle", "Desk Lamp", "Toaster", "Blender", "Speaker", "Vacuum", "Router", "Monitor", "Keyboard", "Webcam",
        "Coffee Grinder", "Air Purifier", "Heater", "Rice Cooker", "Soundbar", "Radio", "Fan", "Printer",
    ),
    "unnamed": ("item", "device", "machine", "appliance"),
    "order_number": ("@-####", "######", "ORD-####", "@@##-###", "####/@", "SO####"),
    "agent": ("Kevin", "Sandra", "Paul", "Julia", "Ahmed", "Nina", "Oscar", "Rosa"),  # none is a customer's first name
    "amount": ("€1##.90", "£2##", "3## euros", "$1##.50", "€2##.25", "1##0 kr"),
    "phone": ("555-01##",),  # North America keeps these for fiction, so nobody is called
    "deadline": ("today", "by {weekday}", "before {date}", "within {few} hours", "by {hour}"),
    "patience": ("{weekday} will do", "it can wait until {month}", "after {date} is fine", "I can wait {days} days"),
    "date": ("{day} {month}", "{month} {day}"),
    "day": tuple(map(str, range(1, 29))),
    "month": ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October"),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
    "days": tuple(map(str, range(3, 29))),
    "few": ("two", "three", "4", "five", "6"),
    "hour": ("9 am", "noon", "3 pm"),
    "volts": ("100", "110", "120", "230"),
    "error": ("E##",),
}  # fmt: skip
_LETTERS = "ABCDEFGHKLMNPRSTUVWX"


# --- drawing rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draw:
    """One message with its answer. `combination` is its main sentences and slot values, before any typo."""

    message: str
    answer: dict[str, str | None]
    combination: tuple[str | None, ...]


def _draw_splits(*, seed: int, train_rows: int, heldout_rows: int) -> tuple[list[_Draw], list[_Draw]]:
    """Both splits from one stream of random numbers; `seen` runs through both, so nothing is drawn twice."""
    for name, rows in (("train_rows", train_rows), ("heldout_rows", heldout_rows)):
        if rows < 1:
            raise ValueError(f"{name} must be at least 1, not {rows}")
    rng = random.Random(seed)
    customers = [f"{first} {last}" for first in _FIRST_NAMES for last in _LAST_NAMES]
    rng.shuffle(customers)
    a_fifth = len(customers) // 5
    seen: set[str | tuple[str | None, ...]] = set()
    heldout = _draw_split(rng, heldout_rows, customers[:a_fifth], seen)
    train = _draw_split(rng, train_rows, customers[a_fifth:], seen)
    return train, heldout


def _draw_split(
    rng: random.Random, rows: int, customers: Sequence[str], seen: set[str | tuple[str | None, ...]]
) -> list[_Draw]:
    """`rows` draws, even over the categories. Their order numbers and combinations are new to `seen`, and join it."""
    categories = list(itertools.islice(itertools.cycle(_PROBLEMS), rows))
    rng.shuffle(categories)
    draws = []
    for category in categories:
        draw = _draw(rng, category, customers)
        while draw.combination in seen or draw.answer["order_number"] in seen:
            draw = _draw(rng, category, customers)
        seen.add(draw.combination)
        if draw.answer["order_number"] is not None:
            seen.add(draw.answer["order_number"])
        draws.append(draw)
    return draws


def _draw(rng: random.Random, category: str, customers: Sequence[str]) -> _Draw:
    """Choose the answer and sentences that say it, in that order; then misspell the sentences and fill the slots."""
    problem = rng.choice(_PROBLEMS[category])
    weights = _WISH_WEIGHTS[category]
    wish = rng.choices(tuple(weights), tuple(weights.values()))[0]
    wish_sentence = rng.choice(_WISHES[wish])
    urgency = rng.choices(("high", "low", "normal"), (0.3, 0.3, 0.4))[0]
    urgency_sentence = rng.choice(_URGENCIES[urgency])
    product = _filled("{product}", rng) if "{thing}" in problem and rng.random() < 0.85 else None
    order = _filled("{order_number}", rng) if rng.random() < 0.6 else None
    frame = rng.choice(_FRAMES)
    customer = rng.choice(customers) if "{customer}" in frame else None

    thing, order_sentence = product or _filled("{unnamed}", rng), ""
    if order is not None:
        if "{thing}" in problem and rng.random() < 0.3:
            thing += f" (order {order})"
        else:
            order_sentence = rng.choice(_ORDER_SENTENCES)
    aside = _aside(rng, category, product_named=product is not None)
    sentences = [wish_sentence, order_sentence, urgency_sentence, aside]
    rng.shuffle(sentences)
    sentences.insert(rng.randrange(2), problem)
    template = frame.replace("{body}", " ".join(filter(None, sentences)))
    return _Draw(
        message=_filled(_with_typos(template, rng), rng, {"thing": thing, "order": order, "customer": customer}),
        answer=dict(zip(FIELDS, (category, urgency, product, order, wish, customer), strict=True)),
        combination=(problem, wish_sentence, urgency_sentence, product, order, customer),
    )


def _aside(rng: random.Random, category: str, *, product_named: bool) -> str:
    """A distracting sentence, or none."""
    if rng.random() < 0.6:
        return ""
    if product_named and rng.random() < 0.25:
        return rng.choice(_ASIDES_ABOUT_ANOTHER)
    return rng.choice(_ASIDES + _ASIDES_OF_CATEGORY[category])


def _filled(template: str, rng: random.Random, given: Mapping[str, str | None] = {}) -> str:
    """The template with each slot replaced by its value in `given`, or else by a choice from `_FILLERS`, filled."""

    def value(slot: re.Match[str]) -> str:
        return given.get(slot[1]) or _filled(rng.choice(_FILLERS[slot[1]]), rng)

    text = re.sub(r"{(\w+)}", value, template)
    text = re.sub("#", lambda _: rng.choice("0123456789"), text)
    return re.sub("@", lambda _: rng.choice(_LETTERS), text)


_WORD = re.compile(r"(?<![\w{'-])[a-z]{5,}(?![\w}'-])")  # a plain lower-case word outside any {slot}


def _with_typos(template: str, rng: random.Random) -> str:
    """The template with none, one or two of its words misspelt; run before the slots are filled, so never in a slot."""
    count = rng.choices((0, 1, 2), (0.55, 0.33, 0.12))[0]
    words = list(_WORD.finditer(template))
    chosen = rng.sample(words, min(count, len(words)))
    for word in sorted(chosen, key=lambda match: match.start(), reverse=True):  # from the back: earlier spans stay put
        template = template[: word.start()] + _misspelt(word.group(), rng) + template[word.end() :]
    return template


def _misspelt(word: str, rng: random.Random) -> str:
    """Two neighbours swapped, a letter dropped or a letter doubled; the first and the last letter stay."""
    at = rng.randrange(1, len(word) - 2)
    return rng.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
        )
    )


# --- rows and files --------------------------------------------------------------------------------------------------


def _row(draw: _Draw) -> Row:
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": draw.message},
            {"role": "assistant", "content": json.dumps(draw.answer, ensure_ascii=False)},
        ]
    }


def _jsonl(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_whole(path: pathlib.Path, text: str) -> None:
    """Write `path`, unless it holds just that already."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)
