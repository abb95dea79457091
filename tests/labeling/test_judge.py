"""A judge behind a real endpoint: what it says becomes a label, what goes wrong becomes a counted error."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from sail.core.artifacts import Artifact, Leaf, leaf
from sail.core.errors import UserError
from sail.core.labeler_settings import JudgeLabeler
from sail.core.records import ScoredGroup
from sail.core.route_settings import HygieneSettings
from sail.core.store import Store
from sail.labeling.evidence import ScoreEvidence, VerdictEvidence
from sail.labeling.labelers.judge import PolicyEndpoint, judge_comparer, judge_scorer
from sail.labeling.pairing_options import PairingOptions
from sail.labeling.pairs import pair_responses
from sail.labeling.scores import score_responses
from sail.labeling.verdicts import compare_responses
from sail.serving.errors import TransientError
from sail.testbed.judge import GoldJudge, Json, chat_reply, tagged

from .doubles import make_group
from .endpoints import Recorder, compared, judge_settings, read_verdicts, serving
from .stored import read_pairs, write_groups

GOOD, BAD = "the film was great .", "the film was bad ."
GROUPS = [make_group(f"film in {place}", GOOD, BAD, "the film was large .") for place in ("rome", "oslo", "lima")]
SURE = GoldJudge("linear", temperature=0)
PAIRS = 9


def fixed(text: str):
    return lambda body: chat_reply(text)


def verdict(name: str) -> str:
    return json.dumps({"reason": "because", "verdict": name})


def test_a_judge_is_asked_both_ways_and_its_verdict_is_about_the_responses(store: Store) -> None:
    with serving(Recorder(SURE)) as server:
        artifact = compared(store, write_groups(store, GROUPS), judge_settings(server))
        asked = [body["messages"][0]["content"] for body in server.reply.asked]  # type: ignore[attr-defined]
    assert [(v.verdict, v.p_a, v.forward, v.backward) for v in read_verdicts(artifact)] == [
        ("A", 1.0, "A", "A"),  # great against bad
        ("A", 1.0, "A", "A"),  # great against large
        ("B", 0.0, "B", "B"),  # bad against large
    ] * 3
    sides = {tuple(tagged(one, tag) for tag in ("conversation", "response_a", "response_b")) for one in asked}
    assert len(asked) == len(sides) == 2 * PAIRS
    assert artifact.result() == {
        "pairs": PAIRS, "judge/tie_share": 0.0, "judge/abstain_share": 0.0, "judge/error_share": 0.0,
        "judge/first_share": 0.5, "judge/order_flips": 0.0,
    }  # fmt: skip


def test_a_judge_that_follows_the_order_of_presentation_makes_ties_and_is_found_out(store: Store) -> None:
    with serving(fixed(verdict("A"))) as server:
        responses = write_groups(store, GROUPS)
        both = compared(store, responses, judge_settings(server))
        once = compared(store, responses, judge_settings(server, both_orders=False))
    assert {(v.verdict, v.p_a, v.forward, v.backward) for v in read_verdicts(both)} == {("tie", 0.5, "A", "B")}
    assert (both.result()["judge/first_share"], both.result()["judge/order_flips"]) == (1.0, 1.0)
    either = {("A", 1.0, "A", ""), ("B", 0.0, "", "B")}
    assert {(v.verdict, v.p_a, v.forward, v.backward) for v in read_verdicts(once)} <= either
    assert once.result()["judge/first_share"] == 1.0


def test_a_judge_that_is_asked_once_favours_no_place_in_the_list_of_responses(store: Store) -> None:
    """It prefers what it sees first; whichever response is A, the same of the two is shown first."""
    groups = [make_group(f"film {n}", f"the film was {n}", f"the book was {n}") for n in range(60)]
    turned = [make_group(f"film {n}", f"the book was {n}", f"the film was {n}") for n in range(60)]
    with serving(fixed(verdict("A"))) as server:
        settings = judge_settings(server, both_orders=False)
        one, other = (read_verdicts(compared(store, write_groups(store, way), settings)) for way in (groups, turned))
    assert 18 <= sum(v.verdict == "A" for v in one) <= 42  # of 60 fair draws, within 3 deviations
    assert [v.p_a for v in other] == [None if v.p_a is None else 1.0 - v.p_a for v in one]


def slow(body: Json) -> tuple[int, bytes]:
    time.sleep(1.0)
    return chat_reply(verdict("A"))


WRONG = {
    "garbage": (lambda body: (200, b"\x00\xff not json"), "no JSON"),
    "another object": (lambda body: (200, b'{"detail": "hello"}'), "no chat completion"),
    "no text": (lambda body: (200, b'{"choices": [{"message": {"content": null}}]}'), "without text"),
    "prose": (fixed("I think that A is better, because it is kind."), "no JSON"),
    "a fence": (fixed(f"```json\n{verdict('A')}\n```"), "no JSON"),
    "another key": (fixed('{"verdict": "A", "winner": "B"}'), "no object of verdict"),
    "another verdict": (fixed(verdict("a")), "none of A, B, tie, abstain"),
    "a list": (fixed('["A"]'), "no object of verdict"),
    "nothing": (fixed(""), "no JSON"),
    "a crash": (lambda body: (500, b"out of memory"), "HTTP 500"),
    "a refusal": (lambda body: (400, b"context length exceeded"), "HTTP 400"),
    "silence": (slow, "no answer within 0.2 s (timeout_s)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_answer_is_a_counted_error_and_never_a_label(store: Store, kind: str) -> None:
    reply, told = WRONG[kind]
    responses = write_groups(store, GROUPS)
    with serving(reply) as server:
        artifact = compared(store, responses, judge_settings(server, timeout_s=0.2))
    for v in read_verdicts(artifact):
        assert (v.verdict, v.p_a, v.forward, v.backward) == ("error", None, "error", "error")
        assert told in v.problem
    assert artifact.result()["judge/error_share"] == 1.0
    evidence = VerdictEvidence(artifact, "judge", "d1g357", True)
    with pytest.raises(UserError, match=f"no pair is left of 3 prompts: dropped {PAIRS} errors"):
        pair_responses(store, responses, evidence, PairingOptions("all", "soft", 7))


def only_for(word: str, wrong: str):
    """The gold judge, but not for conversations with this word."""
    return lambda body: chat_reply(wrong) if word in body["messages"][0]["content"] else SURE(body)


def test_errors_and_abstentions_leave_their_pairs_out_and_the_others_in(store: Store) -> None:
    responses = write_groups(store, GROUPS)
    for wrong, dropped in (("hm.", "labels/dropped_errors"), (verdict("abstain"), "labels/dropped_abstained")):
        with serving(only_for("rome", wrong)) as server:
            template = judge_settings(server, num_answers=1, max_tokens=64 + len(wrong))  # another judge each time
            artifact = compared(store, responses, template)
        evidence = VerdictEvidence(artifact, "judge", "d1g357", True)
        pairs = pair_responses(store, responses, evidence, PairingOptions("all", "hard", 7))
        assert (pairs.result()["labels/pairs"], pairs.result()[dropped]) == (6, 3)
        best = pair_responses(store, responses, evidence, PairingOptions("best_worst", "hard", 7))
        assert {(p.chosen[0]["content"], p.rejected[0]["content"]) for p in read_pairs(best)} == {(GOOD, BAD)}
        assert best.result()["labels/pairs"] == 2


def test_too_many_errors_stop_the_stage_and_answers_that_came_are_not_asked_again(store: Store) -> None:
    responses = write_groups(store, GROUPS)
    broken = lambda body: (503, b"busy") if "rome" in body["messages"][0]["content"] else SURE(body)  # noqa: E731
    with serving(Recorder(broken)) as server:
        strict = judge_settings(server, max_error_share=0.3)
        with pytest.raises(UserError, match=r"6 of 18 questions .* HTTP 503.*what was answered is kept"):
            compared(store, responses, strict)
        recorder: Recorder = server.reply  # type: ignore[assignment]
        recorder.reply, before = SURE, len(recorder.asked)
        artifact = compared(store, responses, strict)
        assert (before, len(recorder.asked) - before) == (18, 6)
        assert artifact.result()["judge/error_share"] == 0.0
        compared(store, responses, strict)
        assert len(recorder.asked) == 24


def test_an_answer_that_a_kill_cut_short_is_asked_again(store: Store, tmp_path: Path) -> None:
    with serving(Recorder(SURE)) as server:
        whole = compared(store, write_groups(store, GROUPS), judge_settings(server))
        lines = (whole.path / "answers.jsonl").read_bytes().splitlines(keepends=True)
        assert len(lines) == 2 * PAIRS and lines == sorted(lines)  # in no order of arrival
        other = Store(tmp_path / "other")
        partial = other.root / f"{whole.id}.partial"
        partial.mkdir(parents=True)
        (partial / "answers.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:40])
        again = compared(other, write_groups(other, GROUPS), judge_settings(server))
        assert len(server.reply.asked) == 18 + 13  # type: ignore[attr-defined]
    assert read_verdicts(again) == read_verdicts(whole)
    assert (again.path / "answers.jsonl").read_bytes() == b"".join(lines)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_judge_that_will_never_answer_is_the_users_mistake_at_once(store: Store, status: int) -> None:
    with serving(Recorder(lambda body: (status, b"no"))) as server:
        with pytest.raises(UserError, match=rf"labelers\.judge: the judge refuses every question.*HTTP {status}"):
            compared(store, write_groups(store, GROUPS), judge_settings(server, concurrency=1))
        assert len(server.reply.asked) < 18  # type: ignore[attr-defined]


def test_the_key_goes_to_the_endpoint_and_nowhere_else(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    responses = write_groups(store, GROUPS)
    with serving(SURE, api_key="sk-secret-123") as server:
        settings = judge_settings(server, api_key_env="TOY_JUDGE_KEY")
        with pytest.raises(UserError, match="environment variable TOY_JUDGE_KEY is not set"):
            compared(store, responses, settings)
        monkeypatch.setenv("TOY_JUDGE_KEY", "sk-wrong")
        with pytest.raises(UserError, match=r"refuses every question.*HTTP 401"):
            compared(store, responses, settings)
        monkeypatch.setenv("TOY_JUDGE_KEY", "sk-secret-123")
        artifact = compared(store, responses, settings)
    assert artifact.result()["judge/error_share"] == 0.0
    written = b"".join(path.read_bytes() for path in store.root.rglob("*") if path.is_file())
    assert b"sk-" not in written


def test_log_probs_of_the_letters_are_the_soft_label(store: Store) -> None:
    """p = (sigmoid(m / 2 + b) + sigmoid(m / 2 - b)) / 2 for a reward margin m and a bias 2 b at temperature 2."""
    groups = [make_group("film", GOOD, BAD)]
    with serving(GoldJudge("linear", temperature=2.0, first_bias=1.0)) as server:
        artifact = compared(store, write_groups(store, groups), judge_settings(server, use_logprobs=True))
    (said,) = read_verdicts(artifact)
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert said.p_a == pytest.approx((sigmoid(1.5) + sigmoid(0.5)) / 2, abs=1e-12)
    assert (said.verdict, said.forward, said.backward) == ("A", "A", "A")


def test_letters_that_are_not_there_are_an_error_and_variants_are_added_up(store: Store) -> None:
    tokens = {" A": math.log(0.2), "A": math.log(0.1), "B": math.log(0.1), "The": math.log(0.6)}
    groups = [make_group("film", GOOD, BAD)]
    with serving(lambda body: chat_reply("The", tokens)) as server:
        settings = judge_settings(server, use_logprobs=True, both_orders=False)
        (said,) = read_verdicts(compared(store, write_groups(store, groups), settings))
    assert said.p_a == pytest.approx(0.75 if said.forward else 0.25, abs=1e-12)  # what was shown first has 3/4
    rather_not = [{"The": -0.1}, {"The": math.log(0.91), "A": math.log(0.08), "B": math.log(0.01)}]
    for number, elsewhere in enumerate(rather_not):
        with serving(lambda body, tokens=elsewhere: chat_reply("The", tokens)) as server:
            settings = judge_settings(server, use_logprobs=True, concurrency=1)
            other = [make_group(f"book {number}", GOOD, BAD)]
            (said,) = read_verdicts(compared(store, write_groups(store, other), settings))
        assert (said.verdict, said.p_a) == ("error", None)
        assert f"A and B have {0.09 * number:.2g} of the first token's probability" in said.problem


def test_a_policy_that_judges_is_asked_in_the_runs_own_words(store: Store, tmp_path: Path) -> None:
    """Its chat template and the template's switches are part of the question, so of the verdicts' key too."""
    responses, turns = write_groups(store, GROUPS[:1]), tmp_path / "turns.jinja"
    turns.write_text("{{ messages }}")
    policy, switches = Leaf(tmp_path, "p0l1cy"), {"enable_thinking": False}
    with serving(Recorder(SURE)) as server:

        def judged(*told: Any) -> Artifact:
            endpoint = PolicyEndpoint(policy, lambda: (server.url, "policy"), *told)
            judge = judge_comparer("own", JudgeLabeler(url="policy"), endpoint)
            return compare_responses(store, responses, judge, "all")

        bare, templated, switched = judged(), judged(leaf(turns)), judged(None, switches)
        asked = [body.get("chat_template_kwargs") for body in server.reply.asked]  # type: ignore[attr-defined]
    assert asked == [None] * 12 + [switches] * 6
    assert len({bare.key, templated.key, switched.key}) == 3


def test_a_proxy_of_the_environment_stands_before_strangers_and_not_before_the_runs_own_server(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.1 is this machine, by a name that is not known for it; nobody listens at the proxy."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    responses, shares = write_groups(store, GROUPS[:1]), []
    with serving(SURE) as server:
        url = server.url.replace("127.0.0.1", "127.1")
        stranger = judge_settings(server, url=url)
        own = JudgeLabeler(url="policy", max_retries=0)
        for settings, endpoint in ((stranger, None), (own, PolicyEndpoint(Leaf(tmp_path, "p"), lambda: (url, "m")))):
            judged = compare_responses(store, responses, judge_comparer("judge", settings, endpoint), "all")
            shares.append(judged.result()["judge/error_share"])
    assert shares == [1.0, 0.0]


def test_a_policys_server_that_dies_while_it_judges_is_opened_again_and_asked_once_more(
    store: Store, tmp_path: Path
) -> None:
    responses = write_groups(store, GROUPS)
    with serving(Recorder(SURE)) as server:
        addresses = ["http://127.0.0.1:9", server.url, server.url]
        endpoint = PolicyEndpoint(Leaf(tmp_path, "p0l1cy"), lambda: (addresses.pop(0), "policy"))
        judge = judge_comparer("own", JudgeLabeler(url="policy", max_retries=0, max_error_share=0.0), endpoint)
        artifact = compare_responses(store, responses, judge, "all")
        assert artifact.result()["judge/error_share"] == 0.0
        assert (len(server.reply.asked), len(addresses)) == (2 * PAIRS, 1)  # type: ignore[attr-defined]
        recorder: Recorder = server.reply  # type: ignore[assignment]
        recorder.reply = lambda body: (500, b"out of memory")
        other = write_groups(store, [make_group("film in bern", GOOD, BAD)])
        with pytest.raises(UserError, match="2 of 2 questions"):  # it lives: it is not opened again
            compare_responses(store, other, judge, "all")
    assert addresses == []


def test_no_answer_of_other_weights_than_the_policys_is_kept(store: Store, tmp_path: Path) -> None:
    """The second shard was answered while somebody gave the server other weights."""
    responses, looks = write_groups(store, [make_group(f"film {n}", GOOD, BAD) for n in range(70)]), []

    def unchanged() -> None:
        looks.append(len(server.reply.asked))  # type: ignore[attr-defined]
        if len(looks) == 2:
            raise UserError("it was given other weights", where="vllm.server_urls", cure="")

    with serving(Recorder(SURE)) as server:
        endpoint = PolicyEndpoint(Leaf(tmp_path, "p0l1cy"), lambda: (server.url, "policy"), unchanged=unchanged)
        judge = judge_comparer("own", JudgeLabeler(url="policy"), endpoint)
        with pytest.raises(UserError, match="other weights"):
            compare_responses(store, responses, judge, "all")
        (book,) = store.root.glob("*/answers.jsonl")
        assert len(book.read_text().splitlines()) == 2 * judge.shard_size
        artifact = compare_responses(store, responses, judge, "all")
    assert looks == [128, 140, 152], "the first shard is not asked again, the second is"
    assert artifact.result()["judge/error_share"] == 0.0


def test_answers_of_unknown_weights_are_asked_for_again(store: Store, tmp_path: Path) -> None:
    """The look at the server's weights fails once: nothing is kept of that shard, and the run goes on."""
    responses, looks = write_groups(store, [make_group("a film", GOOD, BAD)]), []

    def unchanged() -> None:
        looks.append(len(server.reply.asked))  # type: ignore[attr-defined]
        if len(looks) == 1:
            raise TransientError("503")

    with serving(Recorder(SURE)) as server:
        endpoint = PolicyEndpoint(Leaf(tmp_path, "p0l1cy"), lambda: (server.url, "policy"), unchanged=unchanged)
        artifact = compare_responses(
            store, responses, judge_comparer("own", JudgeLabeler(url="policy"), endpoint), "all"
        )
    assert looks == [2, 4] and artifact.result()["judge/error_share"] == 0.0


def test_points_are_scores_and_a_missing_one_leaves_its_pairs_out(store: Store) -> None:
    judge = only_for("oslo", '{"reason": "fine", "score": 6}')
    points = lambda body: judge(body) if "oslo" in body["messages"][0]["content"] else SURE(body)  # noqa: E731
    responses = write_groups(store, GROUPS)
    with serving(points) as server:
        labeler = judge_scorer("judge", judge_settings(server, question="rubric"))
        artifact = score_responses(store, responses, labeler)
    rows = artifact.read(ScoredGroup, "scores")
    assert [row.scores for row in rows if not math.isnan(row.scores[0])] == [(3.0, 1.0, 2.0)] * 2  # gold: 2, 0, 1
    assert artifact.result()["errors"] == 3
    evidence = ScoreEvidence(artifact, "judge", labeler.digest)
    for pairing, kept, errors in (("all", 6, 3), ("best_worst", 2, 3)):
        pairs = pair_responses(store, responses, evidence, PairingOptions(pairing, "hard", 7))
        assert (pairs.result()["labels/pairs"], pairs.result()["labels/dropped_errors"]) == (kept, errors)


def test_several_answers_are_averaged_and_each_is_drawn_for_itself(store: Store) -> None:
    groups = [make_group(f"film in {n}", GOOD, "the film was large .") for n in range(40)]
    responses = write_groups(store, groups)
    with serving(GoldJudge("linear", temperature=1.0)) as server:
        settings = judge_settings(server, temperature=1.0, num_answers=4)
        said = read_verdicts(compared(store, responses, settings))
    assert {v.p_a * 8 % 1 for v in said if v.p_a is not None} == {0.0}
    mean = sum(v.p_a for v in said if v.p_a is not None) / len(said)
    assert mean == pytest.approx(1 / (1 + math.exp(-1.0)), abs=4 * math.sqrt(0.2 / 320))  # margin 1, 320 draws


def test_a_template_of_ones_own_is_another_judge_and_a_wrong_one_is_refused(store: Store, tmp_path: Path) -> None:
    responses = write_groups(store, GROUPS)
    own, wrong = tmp_path / "own.j2", tmp_path / "wrong.j2"
    own.write_text("{{ messages[-1].content }}\n<response_a>\n{{ a }}\n</response_a>{{ b }}")
    wrong.write_text("{{ answer }}")
    with serving(Recorder(fixed(verdict("tie")))) as server:
        keys = {compared(store, responses, judge_settings(server, template=path)).key for path in (None, str(own))}
        assert len(keys) == 2
        shortest = min((body["messages"][0]["content"] for body in server.reply.asked), key=len)  # type: ignore[attr-defined]
        assert shortest.startswith("film in ")
        with pytest.raises(UserError, match=r"template does not render.*answer.*It may use messages, a, b"):
            compared(store, responses, judge_settings(server, template=str(wrong)))
        with pytest.raises(UserError, match="no such file"):
            compared(store, responses, judge_settings(server, template="nowhere.j2"))


def test_where_the_judge_listens_is_no_part_of_what_it_says(store: Store) -> None:
    responses = write_groups(store, GROUPS)
    with serving(SURE) as server, serving(SURE) as moved:
        here, there = (compared(store, responses, judge_settings(one)) for one in (server, moved))
        other = compared(store, responses, judge_settings(server, model="another"))
    assert here.key == there.key != other.key


def test_equal_texts_tie_and_nobody_is_asked(store: Store) -> None:
    with serving(Recorder(SURE)) as server:
        artifact = compared(store, write_groups(store, [make_group("film", GOOD, GOOD)]), judge_settings(server))
        assert server.reply.asked == []  # type: ignore[attr-defined]
    assert [(v.verdict, v.p_a) for v in read_verdicts(artifact)] == [("tie", 0.5)]


def test_pairing_anew_asks_nobody(store: Store) -> None:
    responses = write_groups(store, GROUPS)
    with serving(Recorder(SURE)) as server:
        artifact = compared(store, responses, judge_settings(server))
        before = len(server.reply.asked)  # type: ignore[attr-defined]
        evidence = VerdictEvidence(artifact, "judge", "d1g357", True)
        options = [PairingOptions(p, m, s) for p in ("all", "best_worst") for m in ("hard", "soft") for s in (1, 2)]
        options.append(PairingOptions("all", "hard", 7, hygiene=HygieneSettings(ties="keep")))
        for one in options:
            pair_responses(store, responses, evidence, one)
        assert len(server.reply.asked) == before  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"url": "localhost:1", "model": "m"}, "neither an http address"),
        ({"url": "http://localhost:1"}, "needs a model"),
        ({"url": "policy", "model": "m"}, "needs a model"),
        ({"url": "policy", "question": "rubric", "use_logprobs": True}, "for one answer to a pairwise question"),
        ({"url": "policy", "num_answers": 3}, "needs temperature > 0"),
    ],
)
def test_settings_that_cannot_act_are_refused(settings: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        JudgeLabeler(**settings)
