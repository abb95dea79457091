"""The figures of scripts/bench_overlap, from times worked by hand."""

from scripts.bench.overlap import Times, table

FRESH = Times(20.0, generation=[4.0, 5.0, 2.0], update=[3.0, 3.0, 3.0])
STALE = Times(16.0, generation=[4.0, 5.0, 2.0], update=[4.0, 4.0, 3.0])


def test_at_best_the_shorter_of_an_update_and_the_next_generation_takes_no_time():
    assert FRESH.at_best == 20.0 - 3.0 - 2.0, "5 beside 3, 2 beside 3; the first and the last have nothing beside them"


def test_a_pair_of_runs_is_compared_with_what_it_might_have_gained():
    [_, _, fresh, stale] = table({"half and half": {0: [FRESH], 1: [STALE]}}).splitlines()
    assert fresh == "| half and half | fresh | 20.0 | 11.0 | 9.0 | - | - |"
    assert stale == "| half and half | one round stale | 16.0 | 11.0 | 11.0 | 1.25 | 1.33 |"
