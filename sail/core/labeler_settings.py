"""The settings of labelers and of the regulation of labels (sail.core.run_settings names them all)."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sail.core.settings import Settings, execution, meaning

POLICY_URL = "policy"  # a judge at this address is the run's own policy


class RewardFitSettings(Settings):
    """A Bradley-Terry reward model, fitted on a data source (Bradley and Terry 1952; Ouyang et al. 2203.02155)."""

    data: str = meaning(doc="name of the data source with preference pairs")
    init_from: str | None = meaning(
        None, "a language model, which gets a new head, or a classifier with one output; default: the policy's start"
    )
    train: Literal["all", "head"] = meaning("all", "head: the body stays as it was, the one-output head learns")
    margin: float | Literal["column"] = meaning(
        0.0, "m of -log sigmoid(r_chosen - r_rejected - m), Touvron et al. 2307.09288, eq. 2; column: the data's margin"
    )
    ties: Literal["none", "rao_kupper", "davidson"] = meaning("none", "the model of tied pairs; none: p = 1/2")
    tie_threshold: float | None = meaning(
        None, "theta > 1 of rao_kupper, default 3; nu > 0 of davidson, default 1 (Chen et al. 2409.17431)", gt=0
    )
    label_noise: float = meaning(
        0.0, "known share of verdicts the wrong way round, in the likelihood (Patrini et al. 1609.03683)", ge=0, lt=0.5
    )
    steps: int | None = meaning(None, "optimizer steps; default: from epochs", gt=0)
    epochs: float = meaning(1.0, gt=0)
    train_batch_size: int = meaning(64, "pairs per optimizer step", gt=0)
    learning_rate: float = meaning(1e-5, gt=0)
    weight_decay: float = meaning(0.0, ge=0)
    holdout: float = meaning(0.1, "share of pairs kept for accuracy and temperature", ge=0, lt=1)
    max_tokens_per_microbatch: int = execution(16384, gt=0)

    @model_validator(mode="after")
    def _settings_that_act(self) -> "RewardFitSettings":
        if self.margin != "column" and self.margin < 0:
            raise ValueError("a margin is 0 or above")
        if self.tie_threshold is not None and self.ties == "none":
            raise ValueError("tie_threshold is that of a model of ties: set ties")
        if self.tie_threshold is not None and self.ties == "rao_kupper" and self.tie_threshold <= 1:
            raise ValueError("theta of rao_kupper is above 1: at 1 nothing is a tie")
        return self


class JudgeLabeler(Settings):
    """A language model behind an OpenAI-compatible endpoint (docs/labeling.md)."""

    kind: Literal["judge"] = meaning("judge")
    url: str = execution(doc="such as http://localhost:8000/v1; 'policy': the server that samples, as its own judge")
    model: str | None = meaning(None, "the name the endpoint knows it by; none where url is 'policy'")
    question: Literal["pairwise", "rubric"] = meaning("pairwise", "which of two is better, or 0..5 points for one")
    template: str | None = meaning(None, "file with a Jinja template of the question; default: the shipped one")
    both_orders: bool = meaning(
        True, "ask a pair twice, each response first once; p is the mean. false: one order, drawn"
    )
    use_logprobs: bool = meaning(False, "p from the token log-probs of A and B instead of the answer")
    temperature: float = meaning(0.0, "of the judge's answers; token log-probs are read at 1", ge=0)
    num_answers: int = meaning(1, "answers to each question, averaged; several need temperature > 0", ge=1)
    max_tokens: int = meaning(512, "of one answer", gt=0)
    response_format: Literal["json_schema", "json_object", "none"] = meaning("json_schema", "asked of the endpoint")
    max_error_share: float = execution(0.05, "of the questions; above it the stage stops", ge=0, le=1)
    concurrency: int = execution(16, "requests in flight", gt=0)
    timeout_s: float = execution(120.0, "of one request", gt=0)
    max_retries: int = execution(4, "of one request, after a disconnect, a timeout, HTTP 429 or 5xx", ge=0)
    api_key_env: str | None = execution(None, "name of the environment variable that holds the API key")

    @model_validator(mode="after")
    def _settings_that_act(self) -> "JudgeLabeler":
        if (self.model is None) != (self.url == POLICY_URL):
            raise ValueError("a judge at an address needs a model, one at url: policy has none but the policy")
        if self.url != POLICY_URL and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url {self.url!r} is neither an http address nor 'policy'")
        if self.use_logprobs and (self.question != "pairwise" or self.num_answers > 1):
            raise ValueError("use_logprobs is for one answer to a pairwise question: the log-probs hold all of them")
        if self.num_answers > 1 and self.temperature == 0:
            raise ValueError("num_answers above 1 needs temperature > 0: at 0 all answers are one")
        return self


class EnsembleLabeler(Settings):
    """Several scorers as one (Coste et al. 2310.02743): their scores in units of their first round's spread."""

    kind: Literal["ensemble"] = meaning("ensemble")
    of: tuple[str, ...] = meaning(doc="names of labelers that score responses", min_length=2)
    combine: Literal["mean", "min", "mean_minus_std"] = meaning("mean", "min: the worst case over the members")
    k: float = meaning(1.0, "of mean_minus_std: mean - k std over the members", ge=0)
    normalize: bool = meaning(True, "(score - mean) / std of the first round, frozen")


class RuleLabeler(Settings):
    """1 for a response that the expression finds its answer in, else 0."""

    kind: Literal["rule"] = meaning("rule")
    regex: str = meaning(doc="searched in the response; with a group, the group is the answer")
    answers: str | None = meaning(None, "file of {prompt, answer}: what is found has to equal the prompt's answer")

    @field_validator("regex")
    @classmethod
    def _compiles(cls, regex: str) -> str:
        try:
            re.compile(regex)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return regex


class HumanLabeler(Settings):
    """People: the run writes a sheet of pairs, stops, and goes on once it is filled in."""

    kind: Literal["human"] = meaning("human")
    folder: str = execution("sheets", "where the sheets are written")
    format: Literal["csv", "jsonl"] = execution("csv")


class ReplayLabeler(Settings):
    """Recorded verdicts, found again by the text of prompt and responses."""

    kind: Literal["replay"] = meaning("replay")
    path: str = meaning(doc="jsonl file of {prompt, a, b, verdict or p, annotator}")
    annotator: str | None = meaning(None, "only this one's; default: the mean of all who judged the pair")


class NoiseLabeler(Settings):
    """Another labeler whose labels are turned round at a known rate: for studies of label noise."""

    kind: Literal["noise"] = meaning("noise")
    of: str = meaning(doc="name of a labeler, or of the route's own data source")
    rate: float = meaning(doc="share of pairs, or of thumbs, whose label is turned round", ge=0, le=1)


class Temper(Settings):
    """p = sigmoid(logit(p) / temperature); soft labels only."""

    step: Literal["temper"] = meaning("temper")
    temperature: float = meaning(doc="above 1: less sure", gt=0)


class Smooth(Settings):
    """p = (1 - epsilon) p + epsilon (1 - p)."""

    step: Literal["smooth"] = meaning("smooth")
    epsilon: float = meaning(doc="probability that a label is wrong", ge=0, lt=0.5)


class Cap(Settings):
    """p is cut to [1 - confidence, confidence]."""

    step: Literal["cap"] = meaning("cap")
    confidence: float = meaning(doc="no label is surer than this", gt=0.5, le=1)


class DropNearTies(Settings):
    """Pairs with |p - 1/2| < margin go."""

    step: Literal["drop_near_ties"] = meaning("drop_near_ties")
    margin: float = meaning(doc="in probability", gt=0, le=0.5)


class LengthMatched(Settings):
    """Pairs whose longer response has more than ratio times the tokens of the shorter go."""

    step: Literal["length_matched"] = meaning("length_matched")
    ratio: float = meaning(doc="of token counts", ge=1)


class Disagreement(Settings):
    """Pairs on which another labeler names the other winner go, or get the mean of both labels."""

    step: Literal["disagreement"] = meaning("disagreement")
    other: str = meaning(alias="with", doc="a labeler, or the route's own data source")
    do: Literal["drop", "soften"] = meaning("drop")


class Deduplicate(Settings):
    """Of pairs with the same words in prompt and responses the first stays."""

    step: Literal["deduplicate"] = meaning("deduplicate")


RegulationStep = Annotated[
    Temper | Smooth | Cap | DropNearTies | LengthMatched | Disagreement | Deduplicate, Field(discriminator="step")
]
