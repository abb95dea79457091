"""The exact side: expectations summed in numpy with formulas of their own, differentiated by the complex step.

sum_x rho(x) sum_ab pi(a) pi(b) sum_y label_y l_y. The complex step f'(t) = Im f(t + i e) / e subtracts nothing and
so is exact to rounding (Squire and Trapp 1998). theta enters in three places (who draws, who labels, whose loss) and
each can be differentiated alone. Nothing of sail.objectives is used here.
"""

from collections.abc import Callable

import numpy as np

from .tabular import World

COMPLEX_STEP = 1e-30


def log_softmax(theta: np.ndarray) -> np.ndarray:
    return theta - np.log(np.exp(theta).sum(axis=-1, keepdims=True))


def gaps(world: World, theta: np.ndarray, averaged: bool = False) -> np.ndarray:
    """[P, R, R]: log-ratio of a minus that of b, summed; averaged: log pi per token instead, without a reference."""
    values = log_softmax(theta) / world.num_tokens if averaged else log_softmax(theta) - log_softmax(world.ref_theta)
    return values[:, :, None] - values[:, None, :]


def softplus(z: np.ndarray) -> np.ndarray:
    return np.log(1.0 + np.exp(z))


def exact_losses(world: World, loss: str, theta: np.ndarray, params: dict[str, float]) -> np.ndarray:
    """[P, R, R]: the loss if a wins; its transpose is the loss if b wins."""
    logps, beta, epsilon = log_softmax(theta), params.get("beta", 0.1), params.get("epsilon", 0.0)
    z = beta * gaps(world, theta)
    if loss in ("dpo", "cdpo"):
        return softplus(-z) + epsilon * z
    if loss == "rdpo":
        return softplus(-z) - epsilon / (1.0 - 2.0 * epsilon) * z
    if loss == "ipo":
        return (gaps(world, theta) - 0.5 / beta) ** 2
    if loss == "sppo_hard":
        ratios = logps - log_softmax(world.ref_theta)
        return (ratios[:, :, None] - 0.5 / beta) ** 2 + (ratios[:, None, :] + 0.5 / beta) ** 2
    if loss == "simpo":
        return softplus(params["gamma"] - beta * gaps(world, theta, averaged=True))
    short = params["delta"] - logps[:, :, None] + logps[:, None, :]
    return np.where(short.real > 0, short, 0.0)


def exact_preference(world: World, loss: str, theta: np.ndarray, params: dict[str, float]) -> np.ndarray:
    """[P, R, R]: q(a beats b); slic, which has no link, borrows dpo's at its default beta."""
    beta, epsilon = params.get("beta", 0.1), params.get("epsilon", 0.0)
    sigmoid = 1.0 / (1.0 + np.exp(-beta * gaps(world, theta)))
    if loss == "simpo":
        u = beta * gaps(world, theta, averaged=True)
        won, lost = 1.0 + np.exp(u - params["gamma"]), 1.0 + np.exp(-u - params["gamma"])
        return won / (won + lost)
    if loss == "rdpo":
        return (1.0 - epsilon) * sigmoid + epsilon * (1.0 - sigmoid)
    if loss in ("cdpo", "ipo", "sppo_hard"):
        half = {"ipo": 1.0, "sppo_hard": 0.5}.get(loss, 0.0) * beta * gaps(world, theta) + 0.5
        linear = (sigmoid - epsilon) / (1.0 - 2.0 * epsilon) if loss == "cdpo" else half
        return np.where(linear.real <= 0, 0.0, np.where(linear.real >= 1, 1.0, linear))
    return sigmoid


def exact_objective(
    world: World,
    loss: str,
    label: str,
    params: dict[str, float],
    draws: np.ndarray | None,
    labels: np.ndarray,
    losses: np.ndarray,
) -> complex:
    """The expectation, with theta given three times; draws=None takes responses from the dataset.

    label: soft | sampled | hard by the labeler ("others-..."), or by the policy ("fresh-...").
    """
    if draws is None:
        pair_probs = world.dataset
    else:
        probs = np.exp(log_softmax(draws))
        pair_probs = probs[:, :, None] * probs[:, None, :]
    p_a = world.labeler if label.startswith("others") else exact_preference(world, loss, labels, params)
    if label.endswith("hard"):
        p_a = np.where(p_a.real > 0.5, 1.0, np.where(p_a.real < 0.5, 0.0, 0.5))
    if_a = exact_losses(world, loss, losses, params)
    values = p_a * if_a + (1.0 - p_a) * if_a.transpose(0, 2, 1)
    return complex((world.prompt_probs[:, None, None] * pair_probs * values).sum())


def complex_step(function: Callable[[np.ndarray], complex], theta: np.ndarray) -> np.ndarray:
    gradient = np.zeros_like(theta)
    for index in np.ndindex(*theta.shape):
        stepped = theta.astype(complex)
        stepped[index] += 1j * COMPLEX_STEP
        gradient[index] = function(stepped).imag / COMPLEX_STEP
    return gradient


def exact_gradient(
    world: World, loss: str, label: str, params: dict[str, float], *, sail_coef: float, from_policy: bool = True
) -> np.ndarray:
    """d/d theta of the loss's own dependence, plus c times that of the draws and of the labels. [P, R]."""

    def in_slots(draws: bool, labels: bool, losses: bool) -> np.ndarray:
        def function(theta: np.ndarray) -> complex:
            fixed = world.theta.astype(complex)
            draw_theta = (theta if draws else fixed) if from_policy else None
            return exact_objective(
                world, loss, label, params, draw_theta, theta if labels else fixed, theta if losses else fixed
            )

        return complex_step(function, world.theta)

    return in_slots(False, False, True) + sail_coef * in_slots(True, True, False)
