"""What is grammatical in a review: a finite automaton over word categories.

A review is  ("the" NOUN "was" [INTENSIFIER] ADJECTIVE ("and" | "but" | "."))*  and ends after a ".".
The state of the automaton is the category of the last word read, so it is the table FOLLOWERS and nothing else:

    START -> ARTICLE -> NOUN -> COPULA -> [INTENSIFIER ->] ADJECTIVE -> JOINER -> ARTICLE ...
                                                                     -> STOP   -> ARTICLE ... | END

A word out of place counts once, and reading goes on from it: "the film film was good ." has one ungrammatical
token, the second "film". A word that belongs to no category (a place, an unknown word) counts and is skipped.
"""

from collections.abc import Sequence
from enum import Enum, auto

from sail.testbed.words import ADJECTIVES, ARTICLE, COPULA, INTENSIFIERS, JOINERS, NOUNS, STOP


class Category(Enum):
    START = auto()
    ARTICLE = auto()
    NOUN = auto()
    COPULA = auto()
    INTENSIFIER = auto()
    ADJECTIVE = auto()
    JOINER = auto()
    STOP = auto()
    END = auto()


FOLLOWERS: dict[Category, set[Category]] = {
    Category.START: {Category.ARTICLE},
    Category.ARTICLE: {Category.NOUN},
    Category.NOUN: {Category.COPULA},
    Category.COPULA: {Category.INTENSIFIER, Category.ADJECTIVE},
    Category.INTENSIFIER: {Category.ADJECTIVE},
    Category.ADJECTIVE: {Category.JOINER, Category.STOP},
    Category.JOINER: {Category.ARTICLE},
    Category.STOP: {Category.ARTICLE, Category.END},
}

CATEGORY_OF: dict[str, Category] = {
    ARTICLE: Category.ARTICLE,
    COPULA: Category.COPULA,
    STOP: Category.STOP,
    **dict.fromkeys(JOINERS, Category.JOINER),
    **dict.fromkeys(NOUNS, Category.NOUN),
    **dict.fromkeys(INTENSIFIERS, Category.INTENSIFIER),
    **dict.fromkeys(ADJECTIVES, Category.ADJECTIVE),
}


def count_ungrammatical(words: Sequence[str], *, finished: bool) -> int:
    """How many tokens are out of place, the end-of-sequence token included when the response finished.

    A response cut by the length limit has no end to judge: only its words count.
    """
    state, errors = Category.START, 0
    for word in words:
        category = CATEGORY_OF.get(word)
        if category is None:
            errors += 1
            continue
        errors += category not in FOLLOWERS[state]
        state = category
    return errors + (finished and Category.END not in FOLLOWERS[state])


def first_clause(words: Sequence[str]) -> Sequence[str]:
    """The words before the first "and", "but" or ".": all of them when there is none."""
    for position, word in enumerate(words):
        if word == STOP or word in JOINERS:
            return words[:position]
    return words
