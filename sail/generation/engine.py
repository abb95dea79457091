"""What an engine is: something that draws samples from a policy."""

from collections.abc import Iterator, Sequence
from threading import Event
from typing import NamedTuple, Protocol, runtime_checkable

from sail.core.records import Prompt, StopKind
from sail.core.run_settings import GenerationSettings
from sail.policy.loading import Checkpoint


class SampleRequest(NamedTuple):
    prompt: Prompt
    num_samples: int
    seed: int  # of the first sample; sample i uses seed + i
    principled_ids: tuple[int, ...] = ()  # of the prompt with the principle of generation.linear_alignment


class Drawn(NamedTuple):
    """One drawn response."""

    token_ids: tuple[int, ...]  # with the EOS or stop token that ended it
    logprobs: tuple[float, ...]  # of the distribution really sampled, nats
    stop_kind: StopKind


class Engine(Protocol):
    """Draws are a pure function of (weights, prompt, seed, settings): order, company and restarts change nothing."""

    def use(self, policy: Checkpoint) -> None:
        """Sample from these weights from now on; verified before the first sample."""

    def sample(self, requests: Sequence[SampleRequest], settings: GenerationSettings) -> list[list[Drawn]]:
        """For each request its samples, in the order of the requests."""

    def close(self) -> None:
        """Free memory and processes; closing twice is fine."""


@runtime_checkable
class ServerEngine(Engine, Protocol):
    """An engine in processes of its own: it draws on while we write, and can make room while the policy trains."""

    @property
    def awake(self) -> bool:
        """Whether it can draw while the policy trains: it does not `rest`."""

    def until(self, stop: Event) -> "ServerEngine":
        """The same for another thread, once it uses a policy: what it draws ends with AbandonedError at `stop`."""

    def stream(self, requests: Sequence[SampleRequest], settings: GenerationSettings) -> Iterator[list[Drawn]]:
        """What `sample` returns, each as soon as it and all before it are there."""

    def rest(self) -> None:
        """Give up the trainer's memory, or not, as the settings say; `use` brings it back."""
