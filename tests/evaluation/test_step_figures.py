"""Steps of all rounds on one axis."""

import numpy as np

from sail.evaluation.step_figures import averaged, running_steps, step_panels


def line(step: int, round_index: int, phase: str = "main", **metrics: float) -> dict[str, object]:
    return {"step": step, "round": round_index, "phase": phase, **metrics}


def test_steps_go_on_from_round_to_round_and_phase_to_phase() -> None:
    lines = [line(1, 0), line(2, 0), line(1, 1), line(2, 1), line(5, 0, "next")]
    axis = running_steps(lines)
    assert axis.steps.tolist() == [1, 2, 3, 4, 9]
    assert axis.boundaries == [2, 4]


def test_averages_are_over_neighbours() -> None:
    assert averaged(np.array([1.0, 3.0, 5.0, 9.0]), 2).tolist() == [2.0, 7.0]
    assert averaged(np.array([1.0, 3.0]), 2).tolist() == [1.0, 3.0]


def test_only_what_was_logged_is_drawn() -> None:
    lines = [line(step, 0, loss=0.5, other=1.0) for step in range(1, 100)]
    assert [panel.title for panel in step_panels(lines)] == ["Loss"]
    assert step_panels([]) == []


def test_long_runs_stay_small() -> None:
    lines = [line(step, 0, loss=float(step % 7)) for step in range(1, 20001)]
    assert len(step_panels(lines)[0].svg) < 60_000
