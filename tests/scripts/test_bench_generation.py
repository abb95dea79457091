"""scripts/bench_generation: its figures by hand; the script itself refuses to report where the samples differ."""

from scripts.bench.generation import Load, Took
from scripts.bench.generation_table import bars, load_table, sync_table

LOAD = Load(prompt_tokens=30, num_prompts=4)
TOOK = {
    "raw": [Took(2.0, 0.1, 1.9, 1000), Took(4.0, 0.1, 1.9, 1000), Took(1.0, 0.1, 1.9, 1000)],
    "stage": [Took(2.5, 0.6, 1.9, 1000), Took(4.0, 0.6, 1.9, 1000), Took(1.25, 0.6, 1.9, 1000)],
    "transformers": [Took(5.0, 5.0, 0.0, 900)],
}
SYNCS = {"load adapter": [Took(0.4, 0.2, 0.1, 0)] * 3, "reload from disk": [Took(1.5, 0.5, 0.4, 0)] * 3}


def test_the_stage_is_compared_with_raw_requests_round_by_round() -> None:
    """.8, 1 and .8 of raw: a median of .8, though the means of the times would say .9."""
    rows = [line for line in load_table(LOAD, TOOK).splitlines() if line.startswith("| stage")]
    assert rows == ["| stage | 2.50 | 400 | 0.80 [0.80, 1.00] | 0.60 | 1.90 | 1.25 |"]


def test_each_bar_is_reached_missed_or_undecided() -> None:
    verdicts = {bar.about: bar.verdict for bar in bars({LOAD: TOOK}, SYNCS)}
    assert verdicts == {
        "throughput of the stage beside raw requests, prompts of 30": "inconclusive",
        "load adapter, verified, wall s": "yes",
        "reload from disk, verified, wall s": "no",
    }
    assert "| reload from disk | 1.50 | 0.50 | 0.40 |" in sync_table(SYNCS)
