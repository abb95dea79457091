"""Who writes reviews: random prompts, and two styles of reviewer, a careless one and a careful one."""

import itertools
from dataclasses import dataclass
from random import Random

from sail.testbed.words import (
    ARTICLE,
    ASPECTS,
    COPULA,
    IN,
    INTENSIFIERS,
    JOINERS,
    NEGATIVE,
    NEUTRAL,
    NOUNS,
    OCCASIONS,
    ON,
    PLACES,
    POSITIVE,
    REVIEW_WORDS,
    STOP,
    TOPICS,
)


@dataclass(frozen=True)
class Style:
    """The chances a writer draws with, each in [0, 1]."""

    on_topic: float  # the first noun is the topic, else any noun
    positive: float  # an adjective praises
    negative: float  # an adjective criticises; the rest are neutral
    emphatic: float  # an intensifier before an adjective
    slip: float  # a word is replaced by any other word
    clauses: tuple[float, ...]  # weights of 1, 2, ... clauses


CARELESS = Style(on_topic=0.45, positive=0.35, negative=0.4, emphatic=0.3, slip=0.05, clauses=(2, 3, 3, 3))
CAREFUL = Style(on_topic=0.6, positive=0.45, negative=0.38, emphatic=0.25, slip=0.01, clauses=(2, 3, 3, 2))


def all_prompts(random: Random) -> list[str]:
    """Every prompt there is, 7,680 of them, shuffled: "film in paris on monday"."""
    prompts = [f"{topic} {IN} {place} {ON} {day}" for topic, place, day in itertools.product(TOPICS, PLACES, OCCASIONS)]
    random.shuffle(prompts)
    return prompts


def write_review(prompt: str, style: Style, random: Random) -> str:
    """A review for the prompt: "the film was very good and the staff was rude ."."""
    num_clauses = random.choices(range(1, len(style.clauses) + 1), style.clauses)[0]
    words: list[str] = []
    for clause_index in range(num_clauses):
        noun = _first_noun(prompt, style, random) if clause_index == 0 else random.choice(ASPECTS)
        words += _clause(noun, style, random)
        words.append(STOP if clause_index == num_clauses - 1 else random.choice((*JOINERS, STOP)))
    return " ".join(random.choice(REVIEW_WORDS) if random.random() < style.slip else word for word in words)


def _first_noun(prompt: str, style: Style, random: Random) -> str:
    return prompt.split()[0] if random.random() < style.on_topic else random.choice(NOUNS)


def _clause(noun: str, style: Style, random: Random) -> list[str]:
    kind = random.choices((POSITIVE, NEGATIVE, NEUTRAL), _odds(style))[0]
    emphasis = [random.choice(INTENSIFIERS)] if random.random() < style.emphatic else []
    return [ARTICLE, noun, COPULA, *emphasis, random.choice(kind)]


def _odds(style: Style) -> tuple[float, float, float]:
    return style.positive, style.negative, 1 - style.positive - style.negative
