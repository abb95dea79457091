"""The testbed's judge: an OpenAI-compatible chat endpoint whose taste is a gold reward.

    python -m sail.testbed.judge [--reward hump|linear] [--temperature 1] [--first-bias 0] [--port 8100]
    python -m sail.testbed.judge --port 0 -- sail run config.yaml 'labelers.judge.url={url}'     # for one command alone

It reads the shipped questions of the judge labeler (between <conversation>, <response_a>, ... tags) and prefers the
response shown as A with probability p = sigmoid((r_A - r_B + bias) / temperature); at temperature 0 the higher reward
wins and equal ones tie. A verdict is a draw by the hash of the question, so that the same question gets the same
answer; asked for log-probs it tells log p. Points for a single response are its reward + 1, rounded, within 0..5.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sail.core.records import Example, Message
from sail.core.seeds import uniform
from sail.testbed.gold import REWARDS

MODEL = "testbed-judge"
Json = dict[str, Any]
Reply = Callable[[Json], tuple[int, bytes]]
"""the body of a request to /v1/chat/completions -> HTTP status and content"""

_TURN = re.compile(r"^\[(\w+)\] ", re.MULTILINE)


@dataclass(frozen=True)
class GoldJudge:
    """Answers questions by a gold reward."""

    reward: str = "hump"
    temperature: float = 1.0  # in units of the reward
    first_bias: float = 0.0  # reward that the response shown as A gets for being first

    def __call__(self, body: Json) -> tuple[int, bytes]:
        question = body["messages"][-1]["content"]
        if "<response_a>" not in question:
            points = round(self._reward(question, "response")) + 1
            return chat_reply(json.dumps({"reason": "gold", "score": min(max(points, 0), 5)}))
        p_first = self._preference(question)
        if body.get("logprobs"):
            return chat_reply("A" if p_first >= 0.5 else "B", {"A": _log(p_first), "B": _log(1 - p_first)})
        drawn = "A" if uniform("testbed_judge", question, body.get("seed", 0)) < p_first else "B"
        verdict = "tie" if self.temperature == 0 and p_first == 0.5 else drawn
        return chat_reply(json.dumps({"reason": "gold", "verdict": verdict}))

    def _preference(self, question: str) -> float:
        margin = self._reward(question, "response_a") - self._reward(question, "response_b") + self.first_bias
        if self.temperature == 0:
            return 0.5 + 0.5 * ((margin > 0) - (margin < 0))
        return 0.5 * (1 + math.tanh(margin / self.temperature / 2))

    def _reward(self, question: str, tag: str) -> float:
        parts = _TURN.split(tagged(question, "conversation"))[1:]
        turns = [Message(role=role, content=text.strip()) for role, text in zip(parts[::2], parts[1::2], strict=True)]
        # A judge sees no token ids: whether the response was cut is not known to it.
        return REWARDS[self.reward]([Example(tuple(turns), tagged(question, tag), True)])[0]


def tagged(question: str, tag: str) -> str:
    """What stands between <tag> and </tag>."""
    found = re.search(rf"<{tag}>\n(.*)\n</{tag}>", question, re.DOTALL)
    return "" if found is None else found[1]


def chat_reply(text: str, first_tokens: dict[str, float] | None = None) -> tuple[int, bytes]:
    """A chat completion of one choice; first_tokens: log-probs of its likeliest first tokens."""
    choice: Json = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if first_tokens is not None:
        listed = [{"token": token, "logprob": logprob} for token, logprob in first_tokens.items()]
        choice["logprobs"] = {"content": [listed[0] | {"top_logprobs": listed}]}
    return 200, json.dumps({"object": "chat.completion", "model": MODEL, "choices": [choice]}).encode()


class JudgeServer(ThreadingHTTPServer):
    """A chat endpoint on this machine that answers by a function; port 0 takes a free one, an api_key is asked for."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, reply: Reply, port: int = 0, api_key: str | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.reply, self._api_key = reply, api_key

    def admits(self, authorization: str | None) -> bool:
        return self._api_key is None or authorization == f"Bearer {self._api_key}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer

    def do_GET(self) -> None:
        known = self.path == "/v1/models"
        self._answer(200 if known else 404, json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.server.admits(self.headers["Authorization"]):
            self._answer(401, b"{}")
        else:
            self._answer(*(self.server.reply(body) if self.path == "/v1/chat/completions" else (404, b"{}")))

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: a line per question would bury the run's own."""


def _log(p: float) -> float:
    return math.log(p) if p > 0 else -9999.0  # what OpenAI's endpoints say of the impossible


def main() -> int:
    """Serve until Ctrl-C, or until a command that was given ends: then with its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sail.testbed.judge", description="A judge by the gold reward.")
    parser.add_argument("--reward", default="hump", choices=sorted(REWARDS))
    parser.add_argument("--temperature", type=float, default=1.0, help="in units of the reward; 0: sure")
    parser.add_argument("--first-bias", type=float, default=0.0, help="reward for being shown first")
    parser.add_argument("--port", type=int, default=8100, help="0: a free one")
    parser.add_argument("command", nargs="*", help="behind --: run beside the judge; {url} stands for its address")
    asked = parser.parse_args()
    with JudgeServer(GoldJudge(asked.reward, asked.temperature, asked.first_bias), asked.port) as server:
        print(f"serving {MODEL} at {server.url}", flush=True)
        if asked.command:
            return _beside(server, asked.command)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def _beside(server: JudgeServer, command: Sequence[str]) -> int:
    """The judge is a thread of this process, so that it ends with it whatever happens."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return subprocess.run([part.replace("{url}", server.url) for part in command], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
