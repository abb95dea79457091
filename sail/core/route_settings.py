"""The settings of a route: who responds, who labels, what is kept, by which loss; and what some methods need beside."""

import re
from statistics import NormalDist
from typing import Any, Literal

from pydantic import field_validator, model_validator

from sail.core.labeler_settings import RegulationStep
from sail.core.settings import Settings, meaning

GREEDY = "policy_greedy"
SAMPLED = ("policy", "reference", GREEDY)  # what a route calls responses that are made in the run


class PromptSettings(Settings):
    source: str = meaning(alias="from", doc="name of the data source the prompts come from")
    per_round: int | None = meaning(None, "prompts a round; default: all of them every round", gt=0)


class LabelSettings(Settings):
    """How the pairs of a route get their labels (docs/methods.md, the label table)."""

    by: str = meaning(doc="a data source, a labeler, 'policy', 'order' (earlier sources of the route win), or 'none'")
    as_: Literal["preference", "thumbs", "score", "win_rate"] | None = meaning(
        None, "what labels say; default: what the loss needs", alias="as"
    )
    mode: Literal["hard", "sampled", "soft"] | None = meaning(None, "default: soft by the policy, else hard")
    when: Literal["fresh", "frozen"] = meaning("fresh", "labels by the policy: at the current parameters, or once")
    temperature: float | None = meaning(
        None, "P(A over B) = sigmoid((r_A - r_B) / temperature); default: what a reward model fitted here was "
        "calibrated to on its holdout, 1 for anybody else", gt=0,
    )  # fmt: skip
    normalize: Literal["zscore", "none"] = meaning("zscore", "as score: over all rows, before loss, filter and tag")
    threshold: float | None = meaning(None, "as thumbs: up above this raw score; default: the mean")
    regulation: tuple[RegulationStep, ...] = meaning((), "steps between label and update, in this order")
    audit: tuple[str, ...] = meaning((), "labelers asked about the same pairs, for the report alone")


class FilterSettings(Settings):
    """Which single responses are trained on, by their score; each prompt is looked at by itself but for threshold."""

    top_k: int | None = meaning(None, "the best k of a prompt", gt=0)
    quantile: float | None = meaning(None, "those at or above this quantile of their prompt", ge=0, lt=1)
    threshold: float | None = meaning(None, "those above this score, normalised as the labels say")

    @model_validator(mode="after")
    def _one_rule(self) -> "FilterSettings":
        if sum(value is not None for value in (self.top_k, self.quantile, self.threshold)) != 1:
            raise ValueError("a filter needs exactly one of top_k, quantile and threshold")
        return self


class LossSettings(Settings):
    type: str = meaning(doc="a row of `sail methods`")
    params: dict[str, float] = meaning({}, "the loss's own parameters, such as beta")

    @model_validator(mode="before")
    @classmethod
    def _flat_parameters(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        params = {k: v for k, v in values.items() if k not in ("type", "params")}
        kept = {k: v for k, v in values.items() if k in ("type", "params")}
        return kept | {"params": {**values.get("params", {}), **params}}


class RouteSettings(Settings):
    """One stream of rows into the update: who responds, who labels, which share of the batch."""

    responses: str | tuple[str, ...] = meaning(
        doc="a data source, 'policy' or 'reference' (samples), 'policy_greedy' (the policy's likeliest tokens, one "
        "response a prompt), or a list of them whose responses meet by prompt"
    )
    labels: LabelSettings = meaning(doc="who says which response is better")
    filter: FilterSettings | None = meaning(None, "single responses that are kept; default: all")
    num_generations: int = meaning(2, "samples per prompt", ge=1)
    keep: Literal["all", "best_worst", "random"] = meaning(
        "all", "which pairs of a prompt's samples are kept; of a list: all across origins, or best_worst of everything"
    )
    share: float | Literal["rest"] = meaning("rest", "share of the global batch")
    weight: float | None = meaning(None, "factor of this route's mean loss; default: its share", ge=0)
    sail_coef: float = meaning(0.0, "c of the label table: 1 is the exact gradient, 0 drops the extra terms", ge=0)
    loss: LossSettings | None = meaning(None, "default: the phase's loss")

    @model_validator(mode="before")
    @classmethod
    def _short_labels(cls, values: Any) -> Any:
        """`labels: rm, label_mode: soft` is short for `labels: {by: rm, mode: soft}`."""
        if not isinstance(values, dict):
            return values
        short = {key: values[f"label_{key}"] for key in ("mode", "when", "temperature") if f"label_{key}" in values}
        kept = {key: value for key, value in values.items() if key.removeprefix("label_") not in short}
        labels = values.get("labels")
        if isinstance(labels, str):
            labels = {"by": labels}
        if isinstance(labels, dict):
            kept["labels"] = labels | short
        return kept

    @property
    def sources(self) -> tuple[str, ...]:
        """The origins of its responses, in the order given."""
        return (self.responses,) if isinstance(self.responses, str) else self.responses

    @property
    def samples(self) -> bool:
        """Some of its responses are made in the run, by the policy or by the reference."""
        return bool(set(SAMPLED) & set(self.sources))

    def generations(self, source: str) -> int:
        """Responses that a prompt gets from a source that is sampled; greedy ones would all be equal."""
        return 1 if source == GREEDY else self.num_generations

    @field_validator("responses")
    @classmethod
    def _some_source(cls, responses: Any) -> Any:
        if isinstance(responses, tuple) and (not responses or len(set(responses)) != len(responses)):
            raise ValueError("a list of sources names at least one, each once")
        return responses

    @field_validator("share")
    @classmethod
    def _share_is_a_share(cls, share: Any) -> Any:
        if share != "rest" and not 0 <= share <= 1:
            raise ValueError("a share lies in [0, 1], or is 'rest'")
        return share


class HygieneSettings(Settings):
    """What is dropped, counted, before pairs reach the update."""

    truncated: Literal["drop", "keep"] = meaning("drop", "samples cut at max_completion_length")
    missing_eos_penalty: float = meaning(
        0.0, "taken off a labeler's score of a sample cut at max_completion_length; wants truncated: keep", ge=0
    )
    empty: Literal["drop", "keep"] = meaning("drop", "samples without a single token of text")
    identical: Literal["drop", "keep"] | None = meaning(
        None, "pairs of equal responses; default: keep if sail_coef > 0"
    )
    ties: Literal["drop", "keep"] | None = meaning(
        None,
        "hard labels without a winner; kept: p = 1/2; default: keep where sail_coef is above 0, else drop",
    )
    min_margin: float = meaning(0.0, "drop pairs whose scores differ by less", ge=0)


class ValueSettings(Settings):
    """A value network beside the policy, with an optimizer of its own (DRO-V: arXiv 2405.19107, section 4)."""

    per: Literal["token", "prompt"] = meaning("token", "V(x, y_<k) at every token, or V(x) at the prompt's last")
    learning_rate: float = meaning(1e-4, "follows the policy's schedule", gt=0)
    max_grad_norm: float = meaning(1.0, "0: no clipping", ge=0)


class PromptTagSettings(Settings):
    """Conditional alignment (arXiv 2308.12050): a response's score, written at the end of its prompt."""

    format: str = meaning(
        "<rm_score>: {value:.2f} ", "Python format: {value} is the normalised score, {level} its word"
    )
    levels: tuple[str, ...] = meaning(
        (), "words from worst to best, for equal shares of a normal distribution of scores"
    )
    target: float | str = meaning("p90", "what the policy is asked for: a number, or p50, p90, p99, max of the data's")
    dropout: float = meaning(0.0, "share of rows trained without their tag", ge=0, lt=1)
    evaluate_at: tuple[float | str, ...] = meaning((), "further targets that are evaluated")

    def text(self, value: float) -> str:
        """The tag of a normalised score."""
        position = int(NormalDist().cdf(value) * len(self.levels))
        level = self.levels[min(position, len(self.levels) - 1)] if self.levels else ""
        return self.format.format(value=value, level=level)

    @model_validator(mode="after")
    def _tells_scores_apart(self) -> "PromptTagSettings":
        try:
            different = self.text(-9.0) != self.text(9.0)
        except (KeyError, IndexError, ValueError):
            different = False
        if not different:
            raise ValueError("a tag's format needs {value}, such as {value:.2f}, or {level} with two levels or more")
        return self

    @field_validator("target", "evaluate_at")
    @classmethod
    def _numbers_or_quantiles(cls, targets: Any) -> Any:
        for target in targets if isinstance(targets, tuple) else (targets,):
            if isinstance(target, str) and target != "max" and not re.fullmatch(r"p\d{1,2}(\.\d+)?", target):
                raise ValueError(f"a target is a number, 'max', or a percentile such as p90, not {target!r}")
        return targets


class SaeSettings(Settings):
    """A sparse autoencoder of the policy's hidden states, trained elsewhere and left as it is (FPO)."""

    path: str = meaning(doc="safetensors file with W_enc, b_enc and, for JumpReLU, threshold: Gemma Scope's names")
    layer: int = meaning(doc="the decoder layer, counted from 0, whose output it reads", ge=0)
    k: int = meaning(50, "features that are compared: the largest k of either side (arXiv 2411.07618)", gt=0)


class ComponentSettings(Settings):
    """What some methods need beside the policy; saved in its checkpoint and carried across rounds."""

    value: ValueSettings | None = meaning(None, "a value network")
    prompt_tag: PromptTagSettings | None = meaning(None, "conditional alignment")
    sae: SaeSettings | None = meaning(None, "a sparse autoencoder; enters keys by content")
