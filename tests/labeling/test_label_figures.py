"""Figures of labels, by hand; and the audit of a pairs artifact."""

import json

import pytest

from sail.core.metrics import METRICS
from sail.core.store import Store
from sail.labeling.audit import AUDIT_FILE, audit_labels
from sail.labeling.label_figures import agreement, agreement_matrix, calibration_error, label_figures, reliability
from sail.labeling.labelers.dataset import DatasetEvidence
from sail.labeling.pairing_options import PairingOptions
from sail.labeling.pairs import pair_responses

from .doubles import make_group
from .stored import read_pairs, scored, verdict_of, write_groups


def test_agreement_counts_pairs_that_both_decided() -> None:
    one = ["A", "A", "B", "tie", "error", "A"]
    other = ["A", "B", "B", "A", "A", "abstain"]
    found = agreement(one, other)  # type: ignore[arg-type]
    # of four: 2 equal, 1 flipped; expected by chance (2 * 2 + 1 * 2 + 1 * 0) / 16
    assert (found.num_pairs, found.raw, found.flips) == (4, 0.5, 0.25)
    assert found.kappa == pytest.approx((0.5 - 0.375) / (1 - 0.375))
    assert agreement(["A"], ["error"]) == (0, None, None, None)
    assert agreement(["A", "A"], ["A", "A"]).kappa is None  # chance alone would agree always
    assert agreement_matrix({"x": ["A"], "y": ["B"]})["y"]["x"].flips == 1.0


def test_reliability_puts_confidence_beside_being_right() -> None:
    """Sure labels (.95) right 1 of 2 times, unsure ones (.6 and, for B, .4) both right."""
    curve = reliability([0.95, 0.95, 0.6, 0.4], [1.0, 0.0, 1.0, 0.0])
    assert [(one.confidence, one.accuracy, one.num_pairs) for one in curve] == [
        (pytest.approx(0.6), 1.0, 2), (pytest.approx(0.95), 0.5, 2),
    ]  # fmt: skip
    assert calibration_error(curve) == pytest.approx(0.5 * 0.4 + 0.5 * 0.45)
    assert calibration_error([]) is None
    assert reliability([0.5, 1.0], [1.0, 0.5])[0].accuracy == 0.5


def test_labels_that_favour_length_are_found_out(store: Store) -> None:
    groups = [make_group("film", "good", "bad and bad"), make_group("book", "good and good", "bad")]
    responses = write_groups(store, groups)
    evidence = scored(store, groups, 0.0, 1.0, 3.0, 0.0)
    pairs = read_pairs(pair_responses(store, responses, evidence, PairingOptions("all", "hard", 7)))
    assert label_figures(pairs) == {
        "quality/confidence": 1.0, "quality/longer_wins": 1.0,
        "quality/margin_p10": pytest.approx(1.2), "quality/margin_p50": 2.0, "quality/margin_p90": pytest.approx(2.8),
    }  # fmt: skip


def test_an_audit_compares_the_labels_with_others_on_the_same_pairs(store: Store) -> None:
    groups = [make_group(f"{n} film", "good", "bad", stop_kind="dataset") for n in range(4)]
    data = write_groups(store, groups, [verdict_of(group) for group in groups])
    noisy = scored(store, groups, 2.0, 0.0, 2.0, 0.0, 2.0, 0.0, 0.0, 2.0)
    pairs = pair_responses(store, data, noisy, PairingOptions("verdicts", "soft", 7))
    audit = audit_labels(store, data, pairs, {"prefs": DatasetEvidence(data, "prefs"), "itself": noisy})
    result, sure = audit.result(), 0.8807970779778823
    assert (result["quality/agreement/prefs"], result["quality/flip_rate/prefs"]) == (0.75, 0.25)
    assert result["quality/ece/prefs"] == pytest.approx(sure - 0.75)
    assert (result["quality/agreement/itself"], result["quality/ece/itself"]) == (1.0, pytest.approx(1 - sure))
    written = json.loads((audit.path / AUDIT_FILE).read_text())
    assert written["agreement"]["itself"]["prefs"]["raw"] == 0.75
    assert written["reliability"]["prefs"] == [{"accuracy": 0.75, "confidence": pytest.approx(sure), "num_pairs": 4}]
    assert sum(written["margins"]["counts"]) == 4
    named = {name.rpartition("/")[0] for name in result if name.startswith("quality/")}
    assert {f"{name}/<auditor>" for name in named} <= METRICS.keys()
