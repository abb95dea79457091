"""The records stages exchange: frozen, validated when made, ids everywhere and positions nowhere.

Prompt -> SampleGroup (n samples) -> ScoredGroup (n scores) -> PreferencePair or ResponseRow -> checkpoint.

Token ids are the truth; text is for people and judges. A worked example of one prompt's way:

    Prompt("p-3fa9...", ({"role": "user", "content": "tea at noon"},), token_ids=(1, 17, 4, 9, 2), ...)
    Sample("p-3fa9...-r0-1", text="the tea was good .", token_ids=(5, 17, 6, 31, 8, 3), stop_kind="eos", ...)
    PreferencePair(a_id="p-3fa9...-r0-0", b_id="p-3fa9...-r0-1", p_a=0.27, verdict="B", draw=0.61, ...)
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, get_args

StopKind = Literal["eos", "stop_token", "stop_string", "length", "abort", "dataset"]
Verdict = Literal["A", "B", "tie", "abstain", "error"]
LabelMode = Literal["hard", "sampled", "soft"]
LabelSource = Literal["others", "fresh"]

_WORD = re.compile(r"\w+")


class Message(TypedDict):
    role: str
    content: str


def content_hash(value: Any, length: int = 16) -> str:
    """Hex digest of a JSON-like value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation up to the turn the policy is to write; token_ids end with the generation prompt."""

    prompt_id: str
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError(f"prompt {self.prompt_id} has no tokens")


def content_key(prompt: Prompt) -> str:
    """Equal for near-copies of a prompt: the sorted words of the conversation, lower case, no punctuation."""
    words = _WORD.findall(" ".join(turn["content"] for turn in prompt.messages).lower())
    return content_hash(sorted(words))


@dataclass(frozen=True, slots=True)
class Sample:
    """One response: drawn from a policy, or taken from a dataset (origin 'data:<name>', stop_kind 'dataset')."""

    response_id: str
    origin: str
    text: str
    token_ids: tuple[int, ...]  # EOS included if it was emitted
    logprobs: tuple[float, ...]  # of the sampling distribution, nats; empty for dataset responses
    stop_kind: StopKind
    policy_version: str
    seed: int

    def __post_init__(self) -> None:
        if self.stop_kind not in get_args(StopKind):
            raise ValueError(f"response {self.response_id}: unknown stop kind {self.stop_kind!r}")
        if self.logprobs and len(self.logprobs) != len(self.token_ids):
            raise ValueError(
                f"response {self.response_id}: {len(self.token_ids)} tokens, {len(self.logprobs)} log-probs"
            )

    @property
    def finished(self) -> bool:
        """The response ended by itself, not by the length limit."""
        return self.stop_kind not in ("length", "abort")


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """A prompt with its n responses."""

    prompt: Prompt
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        ids = [sample.response_id for sample in self.samples]
        if len(set(ids)) != len(ids):
            raise ValueError(f"prompt {self.prompt.prompt_id}: response ids repeat: {ids}")


@dataclass(frozen=True, slots=True)
class DatasetVerdict:
    """What a preference dataset says of two of its responses; DatasetVerdict("p-3fa9", "...-1", "...-0", 7.5, 4.0)."""

    prompt_id: str
    chosen_id: str
    rejected_id: str
    score_chosen: float | None
    score_rejected: float | None
    p_chosen: float = 1.0  # P(chosen beats rejected), at least 1/2; 1/2 is a tie, in which neither was chosen
    margin: float | None = None  # how much better the chosen one is said to be, in units of a reward

    def __post_init__(self) -> None:
        if not 0.5 <= self.p_chosen <= 1.0:
            raise ValueError(f"prompt {self.prompt_id}: p_chosen = {self.p_chosen} lies outside [1/2, 1]")

    @property
    def is_tie(self) -> bool:
        return self.p_chosen == 0.5


@dataclass(frozen=True, slots=True)
class DatasetRating:
    """What a dataset says of a single response: a score, a thumb, or both."""

    prompt_id: str
    response_id: str
    score: float | None
    thumb: bool | None


@dataclass(frozen=True, slots=True)
class Example:
    """What a scorer sees of a response."""

    prompt: tuple[Message, ...]
    response: str
    finished: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a labeler of pairs sees: two responses, as text."""

    prompt: tuple[Message, ...]
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """One score for each response of a prompt, by one labeler; nan where it gave none (a judge's counted error)."""

    prompt_id: str
    response_ids: tuple[str, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.response_ids) != len(self.scores):
            raise ValueError(f"prompt {self.prompt_id}: {len(self.response_ids)} responses, {len(self.scores)} scores")


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """What a labeler of pairs says of two responses; A and B name the responses, whichever was shown first.

    PairVerdict("pair-9b1d...", "p-3fa9...", "...-r0-0", "...-r0-1", "tie", 0.5, forward="A", backward="B",
    problem="") is a judge that preferred what it saw first, both times. A verdict of abstain or error has no p_a.
    """

    pair_id: str
    prompt_id: str
    a_id: str
    b_id: str
    verdict: Verdict
    p_a: float | None  # P(A beats B): the mean over orders and answers
    forward: str  # the verdict with A shown first; empty for labelers that are shown no order
    backward: str  # the verdict with B shown first; of a judge that is asked once one of the two is empty
    problem: str  # what went wrong; empty unless the verdict is error

    def __post_init__(self) -> None:
        decided = self.verdict in ("A", "B", "tie")
        if decided != (self.p_a is not None):
            raise ValueError(f"{self.pair_id}: verdict {self.verdict} with p_a = {self.p_a}")
        if self.p_a is not None and not 0.0 <= self.p_a <= 1.0:
            raise ValueError(f"{self.pair_id}: p_a = {self.p_a} is not a probability")


@dataclass(frozen=True, slots=True)
class ResponseLogps:
    """log pi(y|x) of one response under one checkpoint: the float64 sum over its tokens, nats."""

    response_id: str
    logp: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class RolloutTokens:
    """What PPO knows of one response before its update, a number a token: log-probs in nats under the policy that drew
    it and under the reference, the value network's estimates, advantages, returns."""

    response_id: str
    old_logps: tuple[float, ...]
    ref_logps: tuple[float, ...]
    values: tuple[float, ...]
    advantages: tuple[float, ...]
    returns: tuple[float, ...]

    def __post_init__(self) -> None:
        per_token = (self.old_logps, self.ref_logps, self.values, self.advantages, self.returns)
        if len(set(map(len, per_token))) != 1:
            raise ValueError(f"response {self.response_id}: {list(map(len, per_token))} numbers, not one a token each")


@dataclass(frozen=True, slots=True)
class ResponseFeatures:
    """Features of one response under one checkpoint that are not 0, averaged over its tokens."""

    response_id: str
    indices: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two responses of one prompt and who is said to be better.

    p_a is P(A beats B) as the loss uses it when `source` is 'others' (hard and sampled labels: 0 or 1). With source
    'fresh' the update asks the policy at its current parameters; p_a then records its preference when the pair was
    made. draw is U[0, 1), stored so that losses draw nothing: a sampled label is A iff draw < P(A beats B).
    """

    pair_id: str
    prompt_id: str
    a_id: str
    b_id: str
    round_index: int
    source: LabelSource
    mode: LabelMode
    labeler: str
    labeler_digest: str
    verdict: Verdict
    p_a: float
    score_a: float | None
    score_b: float | None
    draw: float
    length_a: int
    length_b: int
    truncated_a: bool
    truncated_b: bool
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]  # by p_a: what `datasets` and other trainers read
    rejected: tuple[Message, ...]
    steps: tuple[str, ...] = ()  # what the regulation did to the label, such as "smooth epsilon=0.1: 1 -> 0.9"

    def __post_init__(self) -> None:
        if not 0.0 <= self.p_a <= 1.0:
            raise ValueError(f"pair {self.pair_id}: p_a = {self.p_a} is not a probability")
        if self.a_id == self.b_id:
            raise ValueError(f"pair {self.pair_id}: both sides are response {self.a_id}")


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """One response a pointwise loss learns from, and what its labeler says of it.

    target is what the loss reads: the normalised score, 1 or 0 for a thumb up or down, a win rate; None without
    labels. tag is what conditional alignment wrote at the end of the prompt ('' for none; dropped tags too).
    mismatched_id is the response of another prompt that KTO's KL estimate puts behind this prompt ('' elsewhere).
    """

    row_id: str
    prompt_id: str
    response_id: str
    round_index: int
    labeler: str
    labeler_digest: str
    score: float | None
    target: float | None
    tag: str
    mismatched_id: str
    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]

    @property
    def mismatched_response_id(self) -> str:
        """The id under which the mismatched response stands behind this row's prompt."""
        return f"{self.response_id}~{self.mismatched_id}"


def index_responses(groups: Sequence[SampleGroup]) -> dict[str, tuple[Prompt, Sample]]:
    """response_id -> (its prompt, the response). The one way a row finds its tokens."""
    index: dict[str, tuple[Prompt, Sample]] = {}
    for group in groups:
        for sample in group.samples:
            if sample.response_id in index:
                raise ValueError(f"response id {sample.response_id} appears twice")
            index[sample.response_id] = (group.prompt, sample)
    return index
