"""The testbed's judge: a real endpoint whose taste is the gold reward."""

import json
import math
import subprocess
import sys
from typing import Any

import httpx
import pytest

from sail.core.labeler_settings import JudgeLabeler
from sail.core.records import Message
from sail.labeling.judge_questions import render, template_of
from sail.testbed.judge import GoldJudge

PAIR = JudgeLabeler(url="http://localhost:1", model="m")
CHAT = (Message(role="user", content="film in rome"),)
GREAT, PLAIN, BAD = "the film was great .", "the film was large .", "the film was bad ."  # linear: 2, 1, 0


def asked(a: str, b: str, messages: tuple[Message, ...] = CHAT, settings: JudgeLabeler = PAIR) -> dict[str, Any]:
    content = render(template_of(settings, ""), "", messages=messages, a=a, b=b)
    return {"messages": [{"role": "user", "content": content}]}


def said(judge: GoldJudge, body: dict[str, Any]) -> dict[str, Any]:
    status, content = judge(body)
    assert status == 200
    return json.loads(json.loads(content)["choices"][0]["message"]["content"])


@pytest.mark.parametrize(("a", "b", "verdict"), [(GREAT, BAD, "A"), (BAD, GREAT, "B"), (BAD, BAD, "tie")])
def test_a_sure_judge_follows_the_gold_reward(a: str, b: str, verdict: str) -> None:
    assert said(GoldJudge("linear", 0.0), asked(a, b))["verdict"] == verdict


def test_a_judge_with_a_temperature_is_wrong_as_often_as_bradley_and_terry_say() -> None:
    judge, verdicts = GoldJudge("linear", temperature=2.0), []
    for number in range(600):
        turns = (Message(role="user", content="book"), Message(role="assistant", content="a book ."),
                 Message(role="user", content=f"film in {number}\nor so"))  # fmt: skip
        verdicts.append(said(judge, asked(GREAT, BAD, turns))["verdict"])
    assert set(verdicts) == {"A", "B"}
    p = 1 / (1 + math.exp(-2.0 / 2.0))
    assert verdicts.count("A") / 600 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 600))
    assert said(judge, asked(GREAT, BAD)) == said(judge, asked(GREAT, BAD))


def test_the_topic_of_the_last_turn_counts() -> None:
    """On topic GREAT is worth one more than off topic: the only difference here."""
    turns = (Message(role="user", content="film"), Message(role="assistant", content="."), CHAT[0])
    about_meals = GREAT.replace("film", "meal")
    assert said(GoldJudge("linear", 0.0), asked(about_meals, GREAT, turns))["verdict"] == "B"
    turns = (*turns[:2], Message(role="user", content="meal"))
    assert said(GoldJudge("linear", 0.0), asked(about_meals, GREAT, turns))["verdict"] == "A"


def test_the_module_serves_until_it_is_stopped() -> None:
    command = [sys.executable, "-m", "sail.testbed.judge", "--reward", "linear", "--temperature", "0", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            (model,) = httpx.get(f"{url}/models", trust_env=False).json()["data"]
            reply = httpx.post(
                f"{url}/chat/completions", json=asked(PLAIN, BAD) | {"model": model["id"]}, trust_env=False
            )
            assert json.loads(reply.json()["choices"][0]["message"]["content"])["verdict"] == "A"
        finally:
            process.terminate()


def test_a_command_beside_the_judge_gets_its_address_and_takes_it_along_when_it_ends() -> None:
    ask = "import httpx, sys; print(httpx.get('{url}/models', trust_env=False).json()['data'][0]['id']); sys.exit(3)"
    command = [sys.executable, "-m", "sail.testbed.judge", "--port", "0", "--", sys.executable, "-c", ask]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    serving, said = done.stdout.splitlines()
    assert (done.returncode, said) == (3, "testbed-judge"), done.stderr
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{serving.split()[-1]}/models", trust_env=False)
