"""Figures of the labels' quality."""

from sail.evaluation.audit_figures import audit_panels
from sail.evaluation.round_figures import round_panels
from sail.evaluation.rounds import RoundRow

CURVE = [{"confidence": 0.6, "accuracy": 0.5, "num_pairs": 3}, {"confidence": 0.9, "accuracy": 0.8, "num_pairs": 9}]


def test_an_audit_shows_its_curves_and_its_margins() -> None:
    audit = {
        "agreement": {},
        "reliability": {"gold": CURVE, "silent": []},
        "margins": {"edges": [0, 1, 2], "counts": [4, 2]},
    }
    reliability, margins = audit_panels({"online": audit})
    assert (reliability.title, margins.title) == ("Reliability of labels, online", "Score margins, online")
    assert "gold" in reliability.svg and "silent" not in reliability.svg


def test_what_was_not_found_is_not_drawn() -> None:
    assert audit_panels({}) == []
    assert audit_panels({"online": {"reliability": {}, "margins": {"edges": [], "counts": []}}}) == []


def test_judge_and_auditors_have_a_line_each() -> None:
    rows = [
        RoundRow(n, "main", {"judge/first_share": 0.6, "quality/agreement/gold": 0.7, "quality/agreement/rm": 0.8})
        for n in range(2)
    ]
    panels = {panel.title: panel.svg for panel in round_panels(rows)}
    assert panels.keys() == {"The judge", "Agreement of labels"}
    assert "first shown wins" in panels["The judge"] and "errors" not in panels["The judge"]
    assert "gold" in panels["Agreement of labels"] and "rm" in panels["Agreement of labels"]
