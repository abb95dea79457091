"""The 128 words of the tiny review language: five marks, the words of reviews, the words of prompts.

A prompt is "TOPIC in PLACE on OCCASION"; only the topic matters to the gold rewards, place and occasion make
the prompts many (24 x 20 x 16 = 7,680). A response is a review, "the NOUN was [very] ADJ and|but|." again and again.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PAD, BOS, EOS, SEP, UNK = MARKS = ("<pad>", "<bos>", "<eos>", "<sep>", "<unk>")

TOPICS = _words(
    "film book meal hotel phone song game concert museum beach garden train camera laptop lecture "
    "recipe painting festival market bakery theatre castle ferry zoo"
)
PLACES = _words(
    "paris rome oslo cairo lima tokyo delhi boston dublin vienna prague lisbon havana nairobi "
    "sydney quebec seoul athens warsaw malta"
)
OCCASIONS = _words(
    "monday tuesday wednesday thursday friday saturday sunday christmas easter midsummer halloween "
    "holiday vacation business sabbatical honeymoon"
)
ASPECTS = _words("staff price style sound view service quality design story mood crowd weather")

POSITIVE = _words(
    "good great lovely superb brilliant charming delightful excellent wonderful pleasant elegant "
    "clever fresh friendly graceful splendid"
)
NEGATIVE = _words(
    "bad awful dull boring terrible ugly clumsy horrible noisy dirty rude stale dreadful shabby weak bland"
)
NEUTRAL = _words("quiet large modern plain small simple ordinary average")
INTENSIFIERS = _words("very really truly quite")

ARTICLE, COPULA, STOP = "the", "was", "."
JOINERS = ("and", "but")
PREPOSITIONS = IN, ON = ("in", "on")

ADJECTIVES = POSITIVE + NEGATIVE + NEUTRAL
NOUNS = TOPICS + ASPECTS
REVIEW_WORDS = (ARTICLE, COPULA, STOP, *JOINERS, *INTENSIFIERS, *ADJECTIVES, *NOUNS)
PROMPT_WORDS = (*PREPOSITIONS, *PLACES, *OCCASIONS)

VOCABULARY = (*MARKS, *REVIEW_WORDS, *PROMPT_WORDS)
