"""What does `autoft run` fine-tune on when given nothing? Support-desk messages, and the JSON a program wants of them.

Every field of the answer can be read off the message, by these rules:

    category      delivery  a parcel is late, lost or at the wrong place
                  billing   a charge, an invoice or a fee is wrong
                  defect    the product does not work as it should
                  return    the product works, and the customer sends it back
                  account   logging in, or what the profile says
                  question  asked before buying
    urgency       high: a deadline or an emergency of the customer's; low: says there is no hurry; normal: neither
    product       the one the message is about, never one named only beside it; null where none is named
    order_number  as written after the word "order"; null where there is none; never a ticket, a phone, an amount ...
    wish          what the customer asks for: refund, replacement, repair, information, cancellation or callback
    customer      the writer's own name, never a colleague's; null where the message is not signed

Typos fall on ordinary words only, never on what an answer repeats.
"""

import itertools
import json
import os
import pathlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

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
# Sentences are templates: {thing} is the product, or a word that names none; the other slots are filled by `_slots`.

_PROBLEMS: dict[str, tuple[str, ...]] = {
    "delivery": (
        "I am still waiting for my {thing}, which was due on {date} and has never turned up.",
        "The {thing} was meant to reach me on {date}, but the courier has not come by yet.",
        "Tracking has said 'in transit' for {days} days now, and my {thing} is nowhere to be seen.",
        "Your site claims the {thing} was handed over on {date}, yet nobody here has received anything.",
        "The driver left my {thing} with a neighbour at number {house}, who knows nothing about it.",
        "The {thing} seems to be lost in the post, because nothing has moved for {days} days.",
        "My {thing} went to my former address at {house} Mill Lane instead of the new one.",
        "You shipped my {thing} {days} days ago, and it still has not got here.",
        "The carrier took my {thing} back to the depot without even ringing the bell.",
        "The van passed our street on {date}, but the {thing} was not on board.",
    ),
    "billing": (
        "My card was charged {amount} twice on the same day for the {thing}.",
        "The invoice for my {thing} says {amount}, although your site quoted a lower price.",
        "I entered a discount code for the {thing}, but the full {amount} was taken from my bank account.",
        "There is a payment of {amount} to you on my bank statement that I cannot explain.",
        "You keep debiting {amount} every month for a service plan I never agreed to.",
        "The bill for the {thing} adds {amount} in fees that nobody had mentioned.",
        "I was billed {amount} for express shipping of the {thing}, which I did not choose at checkout.",
        "My bank shows two withdrawals of {amount} where there should be only one.",
        "My voucher was not deducted when I paid for the {thing}, so I was overcharged by {amount}.",
        "The monthly fee went up to {amount} without any notice from your side.",
    ),
    "defect": (
        "My {thing} stopped working after only {days} days and will not switch on any more.",
        "The {thing} makes a grinding noise and smells of burnt plastic whenever I use it.",
        "Since {date} the {thing} turns itself off after a minute or two.",
        "One button on my {thing} is stuck, and the light stays dark.",
        "The {thing} came out of its box with a crack right across the casing.",
        "The power socket of my {thing} is loose, so it only runs while I hold the cable.",
        "My {thing} shows error E{code} and then does nothing at all.",
        "The {thing} gets far too hot and then shuts down halfway through.",
        "After {days} days of normal use one foot of my {thing} simply broke off.",
        "Right from the start my {thing} has only worked now and then, and mostly not.",
    ),
    "return": (
        "The {thing} works fine, but it is too big for my shelf and I am sending it back.",
        "I have changed my mind about the {thing} and would like to send it back unopened.",
        "The {thing} was a gift, and we already own the same one, so it should go back to you.",
        "The colour of the {thing} does not suit my kitchen, so I have packed it up again for you.",
        "I picked the wrong size of the {thing} by mistake; it is still sealed and can go back.",
        "Nothing is wrong with the {thing}, I simply never use it and want to hand it back.",
        "The {thing} is in perfect shape but louder than I like, so back it goes.",
        "I got the {thing} {days} days ago and wish to return it within the 30 days allowed.",
        "My parents did not like the {thing} I gave them, so it is boxed up to go back.",
        "It turns out we have no room for the {thing}, so I am returning it unused.",
    ),
    "account": (
        "I cannot log in any more, because my password is refused every time I type it.",
        "The link to reset my password never reaches my inbox, although I asked for it {few} times.",
        "My profile still shows my old surname and an address I left in {year}.",
        "After {few} wrong attempts my login has been locked.",
        "The code for the two-step login goes to my old phone, so I am shut out of my profile.",
        "When I sign in, I see the details of a stranger instead of mine.",
        "I tried to register my {thing} online, but the site says my email is already taken.",
        "The app logs me out whenever I try to add my {thing} to my profile.",
        "By accident I have two user profiles, and my {thing} is listed in the wrong one.",
        "Since I changed my email address, I cannot sign in, and my {thing} is gone from my profile.",
    ),
    "question": (
        "Before I buy the {thing}, I would like to know whether it also runs on {volts} volts.",
        "Does the {thing} come with a spare cable, or is that sold separately?",
        "I am thinking about getting the {thing} and wonder how much it weighs.",
        "Will the {thing} be in stock again this autumn? Your page lists it as sold out.",
        "How long is the warranty on the {thing}, and is it valid abroad?",
        "Is the {thing} quiet enough for a bedroom of about {house} square metres?",
        "Can the {thing} be used with older accessories from {year}?",
        "Does your shop at {house} Mill Lane have the {thing} on display, so I can try it before I buy?",
        "We may buy {few} pieces of the {thing} for our office; is there a better price for that many?",
        "Which colours does the {thing} come in, and do they all cost the same?",
    ),
}

_UNNAMED_THINGS: dict[str, tuple[str, ...]] = {
    "delivery": ("parcel", "package", "item", "shipment"),
    "billing": ("item", "device", "purchase", "article"),
    "defect": ("device", "appliance", "machine", "item"),
    "return": ("item", "device", "purchase", "article"),
    "account": ("device", "appliance", "machine", "purchase"),
    "question": ("model in your window", "one in your newsletter", "offer of the week", "one on your front page"),
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
        "Please transfer the money back to my card.",
        "I would like a full refund.",
        "I want my money back, nothing else.",
        "Kindly reimburse me for what I paid.",
        "Could you pay the sum back to my bank account?",
        "I expect you to refund me.",
        "Please give me back what it cost me.",
        "Repay the amount to me, please.",
    ),
    "replacement": (
        "Please send me a new one instead.",
        "I would like it exchanged for another one.",
        "Could you ship another one in its place?",
        "Can I have a replacement, please?",
        "Please swap it for a different one.",
        "I do not want the money, I want another one.",
        "All I ask for is a substitute.",
        "Kindly replace it with another one.",
    ),
    "repair": (
        "Could one of your technicians fix it?",
        "I would like to have it repaired.",
        "Please mend it, because I want to keep it.",
        "Could your workshop put it right?",
        "Please get this very one working again.",
        "I want it fixed rather than thrown away.",
        "Kindly book me a slot in your repair centre.",
        "I hope your workshop can restore it.",
    ),
    "information": (
        "Could you explain to me what is going on?",
        "Please let me know how things stand.",
        "I just want to know what I have to do now.",
        "Can you tell me how this normally works?",
        "Please write me an email that explains the next steps.",
        "I would be glad of an explanation.",
        "All I need for now is some information.",
        "Please tell me what my options are.",
    ),
    "cancellation": (
        "Please cancel the whole purchase.",
        "I want to withdraw from the contract.",
        "Kindly call the whole deal off.",
        "I no longer want any of it, so please cancel.",
        "Consider my purchase cancelled, please.",
        "Please annul the contract between us.",
        "I hereby cancel, please confirm that in writing.",
        "Please stop everything and take me off the books.",
    ),
    "callback": (
        "Please ring me on {phone}.",
        "Could somebody call me back on {phone}?",
        "I would rather talk about this by phone, so do give me a ring.",
        "Please have one of your staff phone me.",
        "Give me a call after {hour} o'clock, please.",
        "I would like a phone call from you; my number is {phone}.",
        "Can an adviser ring me back?",
        "Please telephone me, I do not like to write long emails.",
    ),
}

# Where the plain sentences would read oddly, a category has its own.
_WISHES_OF_CATEGORY: dict[tuple[str, str], tuple[str, ...]] = {
    ("account", "cancellation"): (
        "Please close my account for good.",
        "I would like you to delete my profile altogether.",
        "I want to end my membership with you.",
        "Kindly remove me from your system.",
        "Please cancel my membership.",
        "I no longer want to be a member, so please shut the account down.",
        "Please erase everything you hold about me.",
        "I hereby give up my membership.",
    ),
    ("question", "information"): (
        "A short answer by email is enough.",
        "Please let me know.",
        "Could you tell me more about that?",
        "I would be glad of an answer in writing.",
        "Please send me the details by email.",
        "I could not find this on your website, so please tell me.",
        "All I need for now is this piece of information.",
        "Can you enlighten me?",
    ),
}

_URGENCIES: dict[str, tuple[str, ...]] = {
    "high": (
        "It is urgent.",
        "I need this settled by {weekday} at the latest.",
        "This cannot wait, because we leave on holiday tomorrow.",
        "Please act today, I am running out of time.",
        "I must hear from you within {few} hours.",
        "My small business stands still until this is solved.",
        "Please treat this as an emergency.",
        "My daughter's wedding is on {weekday} and it has to be sorted out before then.",
        "Please hurry, as every hour counts.",
        "I need you to deal with it immediately.",
    ),
    "low": (
        "There is no hurry at all.",
        "Take your time with this.",
        "Whenever you get round to it is fine.",
        "It can easily wait until next month.",
        "It is not pressing.",
        "No rush on my side.",
        "Any time in the next few weeks will do.",
        "Please see to the more important cases first, mine can wait.",
        "I do not mind if this takes a while.",
        "Answer when you have a quiet moment.",
    ),
    # An empty sentence is the usual way of saying nothing about urgency; the others say nothing about it at length.
    "normal": (
        "",
        "",
        "",
        "",
        "Otherwise I am quite happy with your shop.",
        "I hope that is all you need to know.",
        "I have been buying from you since {year}.",
        "This is the first time that I write to you.",
        "Your website was easy to use, by the way.",
        "I am usually at home on {weekday} mornings.",
    ),
}
_URGENCY_WEIGHTS: dict[str, float] = {"high": 0.32, "normal": 0.38, "low": 0.30}

# Distractors: a number that is no order number, a name that is not the customer's, a product that is not the one meant.
_ASIDES: tuple[str, ...] = (
    "My customer number is {customer_number}.",
    "Your chat gave me ticket {ticket}.",
    "Your colleague {agent} told me to write here.",
    "I already spoke to {agent} on {last_weekday}.",
    "My postcode is {postcode}.",
    "The hotline put me on hold for {hold} minutes.",
)
_ASIDES_OF_BUYERS: tuple[str, ...] = (
    "I paid {price} in total.",
    "I bought it last {last_weekday} for {price}.",
    "Payment went through on {paid_on}.",
    "The leaflet in the box has number {leaflet} on it.",
)
_ASIDES_OF_CATEGORY: dict[str, tuple[str, ...]] = {
    "delivery": (
        *_ASIDES_OF_BUYERS,
        "The tracking code is {tracking}.",
        "The courier's depot has the phone {depot_phone}.",
    ),
    "billing": ("The invoice is {invoice}.", "The statement is dated {paid_on}.", "My card ends in {card_end}."),
    "defect": (*_ASIDES_OF_BUYERS, "The serial number is {tracking}.", "I followed page {hold} of the manual."),
    "return": (*_ASIDES_OF_BUYERS, "The invoice {invoice} is in the box."),
    "account": ("The error page shows code {leaflet}.", "I joined in {joined}."),
    "question": ("My budget is {price}.", "Your catalogue shows it on page {hold}."),
}
# Only where the message's own product is named, so that there is no doubt which of the two is meant.
_ASIDES_ABOUT_ANOTHER: tuple[str, ...] = (
    "My old {other} never gave me any trouble.",
    "A friend of mine is happy with her {other}.",
    "I had looked at the {other} too, but did not take it.",
    "For comparison, my sister owns the {other}.",
)
_CATEGORIES_WITH_ANOTHER = ("delivery", "defect", "return", "question")

_ORDER_SENTENCES: tuple[str, ...] = (
    "The order number is {order}.",
    "It was order {order}.",
    "This concerns order {order}.",
    "You will find it under order {order}.",
    "My order has the number {order}.",
    "Order no. {order}, for your records.",
    "I am writing about my order {order}.",
)
_PAST_ORDER_SENTENCES: tuple[str, ...] = (
    "My last order with you was {order}.",
    "I am the buyer of order {order}.",
    "You know me from order {order}.",
    "My most recent order has the number {order}.",
    "Earlier this year I placed order {order}.",
    "For reference, my previous order is {order}.",
)
_ORDER_SHARE: dict[str, float] = {
    "delivery": 0.8,
    "billing": 0.75,
    "defect": 0.75,
    "return": 0.8,
    "account": 0.45,
    "question": 0.3,
}
_CATEGORIES_OF_STRANGERS = ("account", "question")  # an order they mention is an earlier one

_GREETINGS: tuple[str, ...] = (
    "",
    "Hello,",
    "Hi there,",
    "Good morning,",
    "Good evening,",
    "Dear support team,",
    "Dear Sir or Madam,",
    "Hello everyone,",
    "Hi,",
)
_INTRODUCTIONS: tuple[str, ...] = (
    "My name is {customer}.",
    "Hello, this is {customer}.",
    "{customer} here.",
    "Hi, I am {customer}.",
)
_CLOSINGS: tuple[str, ...] = ("", "Thank you.", "Thanks in advance.", "Kind regards", "Many thanks!", "Best wishes")
_SIGNATURES: tuple[str, ...] = (
    "Kind regards, {customer}",
    "Best wishes, {customer}",
    "Thank you, {customer}",
    "Yours sincerely, {customer}",
    "Thanks, {customer}",
    "Regards\n{customer}",
    "- {customer}",
    "Cheers, {customer}",
)
_SIGNED_SHARE, _INTRODUCED_SHARE = 0.60, 0.18  # the rest gives no name

_LAYOUTS: tuple[tuple[str, ...], ...] = (
    ("problem", "order", "asides", "wish", "urgency"),
    ("problem", "asides", "order", "wish", "urgency"),
    ("order", "problem", "asides", "wish", "urgency"),
    ("problem", "order", "urgency", "asides", "wish"),
    ("problem", "wish", "order", "asides", "urgency"),
    ("urgency", "problem", "order", "asides", "wish"),
    ("wish", "problem", "order", "asides", "urgency"),
)

_BRANDS = (
    "Nordlys", "Kestrel", "Lumio", "Veld", "Tamarin", "Sørbø", "Ibis", "Quarzo", "Hoshi", "Brava",
    "Zephyr", "Minari", "Château", "Pico", "Oslo", "Marula", "Fjord", "Arrow", "Kobo", "Selva",
)  # fmt: skip
_MODELS = ("", "", "", " 2", " 300", " Mini", " Pro", " X5", " Plus")
_KINDS = (
    "Kettle", "Desk Lamp", "Toaster", "Blender", "Speaker", "Vacuum", "Router", "Monitor", "Keyboard", "Webcam",
    "Coffee Grinder", "Air Purifier", "Heater", "Rice Cooker", "Soundbar", "Radio", "Fan", "Printer",
)  # fmt: skip

_FIRST_NAMES = (
    "Amira", "Léa", "Jonas", "Yuki", "Mateo", "Ingrid", "Kwame", "Priya", "Tomasz", "Chloe", "Nikos", "Fatima",
    "Björn", "Lucía", "Oluwaseun", "Hannah", "Wei", "Dmitri", "Aoife", "Rafael", "Zeynep", "Samuel", "Noor", "Elena",
    "Piotr", "Grace", "Hiroshi", "Camille", "Sipho", "Marta", "Ali", "Freya", "Diego", "Thandi", "Viktor", "Mei",
)  # fmt: skip
_LAST_NAMES = (
    "Okafor", "Fontaine", "Müller", "Tanaka", "García", "Lindqvist", "Mensah", "Sharma", "Kowalski", "Bennett",
    "Papadakis", "Haddad", "Sørensen", "Romero", "Adeyemi", "Fischer", "Zhang", "Ivanov", "Murphy", "Silva",
    "Çelik", "Carter", "Rahman", "Popescu", "Nowak", "Whitfield", "Sato", "Moreau", "Dlamini", "Costa", "Novák",
    "Andersen", "Castillo", "van Dijk", "O'Brien", "Chen",
)  # fmt: skip
_AGENTS = ("Kevin", "Sandra", "Paul", "Julia", "Ahmed", "Nina", "Oscar", "Rosa")  # none is a customer's first name

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
_LETTERS = "ABCDEFGHKLMNPRSTUVWX"

_WORDS_MIN, _WORDS_MAX = 25, 60  # a draw outside is dropped: a CPU trains on these


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
        while not _is_new(draw, seen) or not _WORDS_MIN <= len(draw.message.split()) <= _WORDS_MAX:
            draw = _draw(rng, category, customers)
        seen.add(draw.combination)
        if draw.answer["order_number"] is not None:
            seen.add(draw.answer["order_number"])
        draws.append(draw)
    return draws


def _is_new(draw: _Draw, seen: set[str | tuple[str | None, ...]]) -> bool:
    return draw.combination not in seen and draw.answer["order_number"] not in seen


def _draw(rng: random.Random, category: str, customers: Sequence[str]) -> _Draw:
    """Choose the answer and sentences that say it, in that order; then misspell the sentences and fill the slots."""
    problem = rng.choice(_PROBLEMS[category])
    weights = _WISH_WEIGHTS[category]
    wish = rng.choices(tuple(weights), tuple(weights.values()))[0]
    wish_sentence = rng.choice(_WISHES_OF_CATEGORY.get((category, wish), _WISHES[wish]))
    urgency = rng.choices(tuple(_URGENCY_WEIGHTS), tuple(_URGENCY_WEIGHTS.values()))[0]
    urgency_sentence = rng.choice(_URGENCIES[urgency])
    product = _product(rng) if "{thing}" in problem and rng.random() < 0.85 else None
    order = _order_number(rng) if rng.random() < _ORDER_SHARE[category] else None
    opening, closing, signed = _opening_and_closing(rng)
    customer = rng.choice(customers) if signed else None

    slots = _slots(rng, product)
    slots |= {
        "thing": product or rng.choice(_UNNAMED_THINGS[category]),
        "order": order or "",
        "customer": customer or "",
    }
    order_sentence = ""
    if order is not None:
        if category in _CATEGORIES_OF_STRANGERS:
            order_sentence = rng.choice(_PAST_ORDER_SENTENCES)
        elif "{thing}" in problem and rng.random() < 0.3:
            slots["thing"] += f" (order {order})"
        else:
            order_sentence = rng.choice(_ORDER_SENTENCES)

    sentences = {
        "problem": problem,
        "order": order_sentence,
        "asides": _asides(rng, category, product_named=product is not None),
        "wish": wish_sentence,
        "urgency": urgency_sentence,
    }
    body = " ".join(filter(None, (opening, *(sentences[part] for part in rng.choice(_LAYOUTS)), closing)))
    return _Draw(
        message=_with_typos(body, rng).format_map(slots),
        answer={
            "category": category,
            "urgency": urgency,
            "product": product,
            "order_number": order,
            "wish": wish,
            "customer": customer,
        },
        combination=(problem, wish_sentence, urgency_sentence, product, order, customer),
    )


def _opening_and_closing(rng: random.Random) -> tuple[str, str, bool]:
    """How the message begins and ends, and whether either gives the customer's name."""
    share = rng.random()
    if share < _SIGNED_SHARE:
        return rng.choice(_GREETINGS), rng.choice(_SIGNATURES), True
    if share < _SIGNED_SHARE + _INTRODUCED_SHARE:
        return rng.choice(_INTRODUCTIONS), rng.choice(_CLOSINGS), True
    return rng.choice(_GREETINGS), rng.choice(_CLOSINGS), False


def _asides(rng: random.Random, category: str, *, product_named: bool) -> str:
    """None, one or two distracting sentences; at most one of them names another product."""
    count = rng.choices((0, 1, 2), (0.25, 0.55, 0.20))[0]
    asides = rng.sample(_ASIDES + _ASIDES_OF_CATEGORY[category], count)
    if product_named and category in _CATEGORIES_WITH_ANOTHER and rng.random() < 0.25:
        asides[:1] = [rng.choice(_ASIDES_ABOUT_ANOTHER)]
    return " ".join(asides)


def _product(rng: random.Random) -> str:
    return f"{rng.choice(_BRANDS)}{rng.choice(_MODELS)} {rng.choice(_KINDS)}"


def _order_number(rng: random.Random) -> str:
    """One of six formats."""
    letter, other_letter = rng.choice(_LETTERS), rng.choice(_LETTERS)
    return rng.choice(
        (
            f"{letter}-{_digits(rng, 5)}",
            _digits(rng, 6),
            f"ORD-{_digits(rng, 5)}",
            f"{letter}{other_letter}{_digits(rng, 2)}-{_digits(rng, 4)}",
            f"{_digits(rng, 4)}/{_digits(rng, 2)}-{letter}",
            f"SO{_digits(rng, 5)}",
        )
    )


def _slots(rng: random.Random, product: str | None) -> dict[str, str]:
    """A value for every slot that no answer repeats."""
    other = _product(rng)
    while other == product:
        other = _product(rng)
    return {
        "other": other,
        "agent": rng.choice(_AGENTS),
        "amount": _money(rng),
        "price": _money(rng),
        "date": _date(rng),
        "paid_on": _date(rng),
        "joined": str(rng.randint(2009, 2023)),
        "year": str(rng.randint(2009, 2023)),
        "weekday": rng.choice(_WEEKDAYS),
        "last_weekday": rng.choice(_WEEKDAYS),
        "days": str(rng.randint(3, 28)),
        "few": rng.choice(("two", "three", "4", "five", "6")),
        "hour": str(rng.randint(9, 18)),
        "hold": str(rng.randint(11, 48)),
        "house": str(rng.randint(10, 40)),
        "volts": rng.choice(("100", "110", "120", "230")),
        "code": _digits(rng, 2),
        "phone": _phone(rng),
        "depot_phone": _phone(rng),
        "ticket": _digits(rng, 5),
        "leaflet": _digits(rng, 5),
        "postcode": _digits(rng, 5),
        "card_end": _digits(rng, 4),
        "customer_number": _digits(rng, 7),
        "invoice": f"R-{rng.randint(2023, 2025)}-{_digits(rng, 3)}",
        "tracking": f"{rng.choice(_LETTERS)}{rng.choice(_LETTERS)}{_digits(rng, 6)}",
    }


def _money(rng: random.Random) -> str:
    whole, cents = rng.randint(12, 390), rng.choice(("90", "50", "95", "25"))
    return rng.choice((f"€{whole}.{cents}", f"£{whole}", f"{whole} euros", f"${whole}.{cents}", f"{whole * 10} kr"))


def _date(rng: random.Random) -> str:
    day, month = rng.randint(1, 28), rng.randrange(len(_MONTHS))
    return rng.choice((f"{day} {_MONTHS[month]}", f"{_MONTHS[month]} {day}", f"{day:02}/{month + 1:02}"))


def _phone(rng: random.Random) -> str:
    """From ranges kept for fiction (Ofcom's drama numbers, North America's 555-01xx), so that nobody is called."""
    return rng.choice((f"020 7946 0{_digits(rng, 3)}", f"0113 496 0{_digits(rng, 3)}", f"555-01{rng.randint(10, 99)}"))


def _digits(rng: random.Random, count: int) -> str:
    return str(rng.randrange(10 ** (count - 1), 10**count))


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


def _jsonl(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _write_whole(path: pathlib.Path, content: bytes) -> None:
    """Write aside and rename, so that whoever finds `path` finds all of it."""
    if path.is_file() and path.read_bytes() == content:
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
