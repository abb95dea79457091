"""The evaluation stage: a policy's held-out samples, their scores and log-probs -> metrics and examples."""

from collections.abc import Mapping, Sequence

from sail.core.artifacts import Artifact
from sail.core.records import DatasetVerdict, SampleGroup, ScoredGroup
from sail.core.store import Builder, Recipe, Workspace
from sail.evaluation.accuracy import (
    Order,
    dataset_orders,
    implicit_rewards,
    mean_margin,
    order_accuracy,
    scored_orders,
)
from sail.evaluation.completions import completion_metrics, length_correlation, nats_per_token
from sail.evaluation.divergence import kl_between, mean_log_ratio
from sail.evaluation.examples import choose_examples
from sail.evaluation.inputs import EvaluationInputs
from sail.evaluation.rewards import check_scores, mean_reward, reward_standard_error
from sail.evaluation.win_rate import bootstrap_interval, prompt_win_shares
from sail.policy.scoring import read_logps

VERSION = 4
METRICS_FILE, EXAMPLES_FILE = "metrics.json", "examples.json"

_Groups = Sequence[SampleGroup]
_Scores = Mapping[str, Sequence[ScoredGroup]]
_Metrics = dict[str, float | None]


def evaluate(
    builder: Builder,
    inputs: EvaluationInputs,
    *,
    beta: float,
    seed: int,
    bf16: bool = False,
    max_tokens: int = 4096,
) -> Artifact:
    """Metrics (names and meanings in sail.core.metrics) of one policy, as metrics.json and the manifest's result.

    A metric that is undefined (no scorer, a single prompt, no pairs with different scores) is absent, never nan.
    examples.json holds 8 prompts with all their responses and scores. beta scales implicit rewards; max_tokens:
    padded tokens of one forward pass of the KL.
    """

    def run(workspace: Workspace) -> dict[str, float]:
        groups = inputs.samples.read(SampleGroup, "groups")
        scores = {name: artifact.read(ScoredGroup, "scores") for name, artifact in inputs.scores.items()}
        for name, scored in scores.items():
            check_scores(groups, scored, name)
        defined_or_not = {
            **completion_metrics(groups),
            "objective/kl": kl_between(inputs.policy, inputs.reference, groups, bf16=bf16, max_tokens=max_tokens),
            **_log_prob_metrics(inputs, groups, scores, beta),
            **_reward_metrics(inputs, groups, scores, seed),
        }
        metrics = {name: value for name, value in defined_or_not.items() if value is not None}
        workspace.write_json(METRICS_FILE, metrics)
        workspace.write_json(EXAMPLES_FILE, choose_examples(groups, scores, seed))
        return metrics

    settings = {"beta": beta, "seed": seed, "bf16": bf16, "scorers": list(inputs.scores)}
    return builder.build(Recipe("evaluation", VERSION, settings, inputs.keyed()), run)


def _reward_metrics(inputs: EvaluationInputs, groups: _Groups, scores: _Scores, seed: int) -> _Metrics:
    metrics: _Metrics = {f"eval/reward/{name}": mean_reward(scored) for name, scored in scores.items()}
    metrics |= {f"eval/reward_se/{name}": reward_standard_error(scored) for name, scored in scores.items()}
    shares = {
        name: prompt_win_shares(scores[name], artifact.read(ScoredGroup, "scores"))
        for name, artifact in inputs.start_scores.items()
    }
    metrics |= {f"eval/win_rate/{name}": float(shares_P.mean()) for name, shares_P in shares.items()}
    if not scores:
        return metrics
    headline = next(iter(scores))
    metrics["eval/reward"] = mean_reward(scores[headline])
    metrics["eval/reward_se"] = reward_standard_error(scores[headline])
    metrics["completions/length_correlation"] = length_correlation(groups, scores[headline])
    if headline in shares:
        metrics["eval/win_rate"] = float(shares[headline].mean())
        low, high = bootstrap_interval(shares[headline], seed, "win_rate", headline) or (None, None)
        metrics |= {"eval/win_rate_low": low, "eval/win_rate_high": high}
    return metrics


def _log_prob_metrics(inputs: EvaluationInputs, groups: _Groups, scores: _Scores, beta: float) -> _Metrics:
    policy, reference = read_logps(inputs.policy_logps), read_logps(inputs.reference_logps)
    metrics: _Metrics = {
        "objective/kl_log_ratio": mean_log_ratio(policy, reference),
        "completions/nats_per_token": nats_per_token(groups, policy),
    }
    if scores:
        orders = scored_orders(next(iter(scores.values())))
        metrics |= _order_metrics("online", implicit_rewards(policy, reference, beta), orders)
    if inputs.pairs is not None:
        pairs = inputs.pairs
        rewards = implicit_rewards(read_logps(pairs.policy_logps), read_logps(pairs.reference_logps), beta)
        metrics |= _order_metrics("offline", rewards, dataset_orders(pairs.data.read(DatasetVerdict, "verdicts")))
    return metrics


def _order_metrics(kind: str, rewards: Mapping[str, float], orders: Sequence[Order]) -> _Metrics:
    return {
        f"rewards/accuracies_{kind}": order_accuracy(rewards, orders),
        f"rewards/margins_{kind}": mean_margin(rewards, orders),
    }
