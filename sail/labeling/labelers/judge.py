"""A language model as a judge, behind any OpenAI-compatible endpoint (Zheng et al. 2306.05685).

Pairs (OAIF, 2402.04792): p is the mean over both orders of presentation, or of a drawn one, from the answers or from
the token log-probs of "A" and "B" (OSP, 2405.14103). Single responses: 0..5 additive points (self-rewarding,
2401.10020).
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sail.core.artifacts import Keyed, Leaf
from sail.core.errors import UserError
from sail.core.labeler_settings import POLICY_URL, JudgeLabeler
from sail.core.records import Comparison, Example, content_hash
from sail.core.seeds import derive_seed, uniform
from sail.core.store import Workspace
from sail.labeling.answers import Answer, AnswerBook
from sail.labeling.judge_questions import (
    LEAST_MASS,
    Reading,
    UnreadableReplyError,
    answer_of,
    combined,
    read,
    render,
    request,
    template_of,
    turned,
)
from sail.labeling.labeler_row import Comparer, Labeler, PairAnswer, PairLabeler, Scorer
from sail.serving.chat import ChatEndpoint, Outcome
from sail.serving.errors import RequestRefusedError, ServerError, ServerLostError

_REFUSED_FOR_ALL = (401, 403, 404)  # no key, no right, no such model: the next question would fare no better
_SEED_LIMIT = 1 << 31  # what the narrowest endpoints take


class PolicyEndpoint(NamedTuple):
    """The server of the run's own policy, for judges at url: policy."""

    policy: Keyed
    open: Callable[[], tuple[str, str]]  # its address and model name; starts it if need be, again if it died
    template: Keyed | None = None  # the run's chat template, which the server was given; None: the policy's own
    template_kwargs: Mapping[str, Any] = {}
    unchanged: Callable[[], None] = lambda: None  # UserError where its server was given other weights since `open`


def judge_scorer(name: str, settings: JudgeLabeler, endpoint: PolicyEndpoint | None = None) -> Labeler:
    """The labeler of single responses behind a judge; settings.question is rubric."""
    source, template = _identity(name, settings, endpoint)

    def open_judge(workspace: Workspace) -> Scorer:
        judge = _open(name, settings, template, source, endpoint, workspace)
        return judge.scores

    return Labeler(name, source, _recipe(settings, template, endpoint), open_judge)


def judge_comparer(name: str, settings: JudgeLabeler, endpoint: PolicyEndpoint | None = None) -> PairLabeler:
    """The labeler of pairs behind a judge; settings.question is pairwise."""
    source, template = _identity(name, settings, endpoint)

    def open_judge(workspace: Workspace) -> Comparer:
        judge = _open(name, settings, template, source, endpoint, workspace)
        return judge.compare

    return PairLabeler(name, source, _recipe(settings, template, endpoint), open_judge)


def _identity(name: str, settings: JudgeLabeler, endpoint: PolicyEndpoint | None) -> tuple[Keyed, str]:
    template = template_of(settings, f"labelers.{name}.template")
    if settings.url != POLICY_URL:
        return Leaf(Path(settings.template or ""), content_hash(_recipe(settings, template), 20)), template
    if endpoint is None:
        raise ValueError(f"labeler {name!r} is the policy: pass its endpoint")
    return endpoint.policy, template


def _recipe(settings: JudgeLabeler, template: str, endpoint: PolicyEndpoint | None = None) -> dict[str, Any]:
    """What can change an answer; templates, the question's and the chat's, count by their text."""
    recipe = settings.recipe() | {"template": content_hash(template)}
    if settings.question == "pairwise" and not settings.both_orders:
        recipe["shown_first"] = "drawn"
    if settings.use_logprobs:
        recipe["least_mass"] = LEAST_MASS
    if endpoint is not None and endpoint.template is not None:
        recipe["chat_template"] = endpoint.template.key
    if endpoint is not None and endpoint.template_kwargs:
        recipe["chat_template_kwargs"] = dict(endpoint.template_kwargs)
    return recipe


def _open(
    name: str,
    settings: JudgeLabeler,
    template: str,
    source: Keyed,
    endpoint: PolicyEndpoint | None,
    workspace: Workspace,
) -> "Judge":
    url, model = (settings.url, str(settings.model)) if endpoint is None else endpoint.open()
    chat = ChatEndpoint(
        url, _api_key(name, settings), settings.timeout_s, settings.max_retries, settings.concurrency,
        ours=endpoint is not None,
    )  # fmt: skip
    return Judge(name, settings, template, source.key, chat, model, AnswerBook(workspace.path), endpoint)


def _api_key(name: str, settings: JudgeLabeler) -> str | None:
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env)
    if not key:
        raise UserError(
            f"the environment variable {settings.api_key_env} is not set", where=f"labelers.{name}.api_key_env",
            cure="Export it, or name another",
        )  # fmt: skip
    return key


@dataclass
class Judge:
    """One stage's judge: what its book holds is not asked again, what goes wrong is counted."""

    name: str
    settings: JudgeLabeler
    template: str
    identity: str  # of the judge, by content
    chat: ChatEndpoint
    model: str
    book: AnswerBook
    endpoint: PolicyEndpoint | None = None
    num_questions: int = 0
    num_errors: int = 0

    def compare(self, comparisons: Sequence[Comparison]) -> list[PairAnswer]:
        """One answer per comparison. UserError once more than max_error_share of all questions have failed."""
        shown = [self._orders(pair) for pair in comparisons]
        sides = [
            (pair.prompt, *((pair.a, pair.b) if a_first else (pair.b, pair.a)))
            for pair, orders in zip(comparisons, shown, strict=True)
            for a_first in orders
        ]
        readings = iter(self._ask([self._question(messages=chat, a=first, b=second) for chat, first, second in sides]))
        return [_pair_answer({a_first: next(readings) for a_first in orders}) for orders in shown]

    def _orders(self, pair: Comparison) -> tuple[bool, ...]:
        """Whether A is shown first, of each question; of a single one a draw by the texts, whichever of them is A."""
        if self.settings.both_orders:
            return (True, False)
        first, second = sorted((pair.a, pair.b))
        return ((uniform("judge_side", first, second) < 0.5) == (pair.a == first),)

    def scores(self, examples: Sequence[Example]) -> list[float]:
        """Mean points of each response, nan for a counted error."""
        readings = self._ask([self._question(messages=one.prompt, response=one.response) for one in examples])
        return [math.nan if reading.value is None else reading.value for reading in readings]

    def _question(self, **fields: Any) -> str:
        return render(self.template, f"labelers.{self.name}.template", **fields)

    def _ask(self, questions: Sequence[str]) -> list[Reading]:
        """One reading per question, its answers averaged."""
        repeats = self.settings.num_answers
        bodies = [self._body(question, repeat) for question in questions for repeat in range(repeats)]
        keys = [content_hash([self.identity, body], 32) for body in bodies]
        failed = self._fill({key: body for key, body in zip(keys, bodies, strict=True) if self.book.get(key) is None})
        each = [self._reading(key, failed) for key in keys]
        readings = [combined(each[place : place + repeats]) for place in range(0, len(each), repeats)]
        self._count(readings)
        return readings

    def _body(self, question: str, repeat: int) -> dict[str, Any]:
        body = request(self.settings, question)
        if self.endpoint is not None and self.endpoint.template_kwargs:
            body["chat_template_kwargs"] = dict(self.endpoint.template_kwargs)
        if self.settings.temperature > 0 or self.settings.use_logprobs:
            body["seed"] = derive_seed("judge", question, repeat) % _SEED_LIMIT
        return body

    def _fill(self, bodies: Mapping[str, dict[str, Any]]) -> dict[str, str]:
        """Ask what the book does not hold; question -> problem where no answer came, to be asked again next time.

        Asked once more, after a look at the server or its restart: what a policy's server left unanswered because it
        died, and what it answered while its weights could not be looked at.
        """
        failed = self._ask_once(bodies)
        lost = {key: bodies[key] for key, error in failed.items() if isinstance(error, ServerLostError)}
        if lost and self.endpoint is not None:
            url, self.model = self.endpoint.open()
            self.chat = replace(self.chat, url=url)
            failed = {key: error for key, error in failed.items() if key not in lost} | self._ask_once(lost)
        return {key: str(error) for key, error in failed.items()}

    def _ask_once(self, bodies: Mapping[str, dict[str, Any]]) -> dict[str, Exception]:
        """Answers enter the book as they come; a policy's once its server is seen to hold the weights they are to be
        of."""
        failed: dict[str, Exception] = {}
        held: dict[str, Answer] = {}
        keys, keep = list(bodies), self.book.put if self.endpoint is None else held.__setitem__
        for position, outcome in self.chat.ask_many([{"model": self.model, **body} for body in bodies.values()]):
            try:
                keep(keys[position], answer_of(self._reply(outcome)))
            except (ServerError, UnreadableReplyError) as error:
                failed[keys[position]] = error
        try:
            if self.endpoint is not None:
                self.endpoint.unchanged()
        except ServerError as error:  # nobody saw what the answers are of
            return failed | {key: ServerLostError(f"its weights could not be looked at: {error}") for key in held}
        for key, answer in held.items():
            self.book.put(key, answer)
        return failed

    def _reply(self, outcome: Outcome) -> Mapping[str, Any]:
        if isinstance(outcome, RequestRefusedError) and outcome.status in _REFUSED_FOR_ALL:
            raise UserError(
                f"the judge refuses every question: {outcome}", where=f"labelers.{self.name}",
                cure="Check url, model and api_key_env",
            ) from None  # fmt: skip
        if isinstance(outcome, ServerError):
            raise outcome
        return outcome

    def _reading(self, key: str, failed: Mapping[str, str]) -> Reading:
        answer = self.book.get(key)
        return Reading("error", None, failed[key][:300]) if answer is None else read(self.settings, answer)

    def _count(self, readings: Sequence[Reading]) -> None:
        problems = [reading.problem for reading in readings if reading.verdict == "error"]
        self.num_questions += len(readings)
        self.num_errors += len(problems)
        if self.num_errors > self.settings.max_error_share * self.num_questions:
            raise UserError(
                f"{self.num_errors} of {self.num_questions} questions to the judge ended in errors, the last: "
                f"{(problems or ['of an earlier shard'])[-1]}", where=f"labelers.{self.name}.max_error_share",
                cure="Mend the judge and run the same command (what was answered is kept), or raise the share",
            )  # fmt: skip


def _pair_answer(readings: Mapping[bool, Reading]) -> PairAnswer:
    """One or both orders as one answer, by whether A was shown first."""
    of_a = {a_first: reading if a_first else turned(reading) for a_first, reading in readings.items()}
    whole = combined([*of_a.values()])
    said = {a_first: reading.verdict for a_first, reading in of_a.items()}
    return PairAnswer(whole.verdict, whole.value, said.get(True, ""), said.get(False, ""), whole.problem)
