"""The server of the current policy, or several: started once, given new weights, restarted when it is lost."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

from sail.core.errors import UserError
from sail.core.run_settings import VllmSettings
from sail.serving.client import ServerClient, complete_over
from sail.serving.completions import CompletionRequest, Numbered
from sail.serving.errors import ServerError, ServerLostError
from sail.serving.flags import rests_by
from sail.serving.replica import Replica
from sail.serving.served_policy import ServedPolicy
from sail.serving.server import VllmServer
from sail.serving.start_failures import unused_log
from sail.serving.versions import installed_vllm

_logger = logging.getLogger(__name__)


class PolicyServer:
    """Serves one policy version at a time, verified against the trainer's log-probs.

        with PolicyServer(settings.vllm, run_dir / "logs") as policy_server:
            policy_server.serve(policy)
            for position, completions in policy_server.complete_many(requests): ...

    mode server: vLLM's server, ours. mode colocate: the same engine in one process of ours. mode external: all of
    settings.server_urls, never started or stopped, same sync; they must run with the flags of sail.serving.flags and
    see the same files.
    """

    def __init__(
        self,
        settings: VllmSettings,
        log_dir: Path,
        *,
        max_model_len: int | None = None,
        lora_rank: int | None = None,
        seed: int = 0,
        chat_template: Path | None = None,
    ) -> None:
        if settings.mode == "external" and not settings.server_urls:
            raise UserError("mode external has no server", where="vllm.server_urls", cure="List its URL there")
        self._settings = settings
        self._log_dir = log_dir
        self._max_model_len = max_model_len
        self._lora_rank = lora_rank  # adapters are served up to this rank; None: whole models only
        self._seed = seed
        self._chat_template = chat_template  # of those who ask a server of ours in words; None: the model's own
        self._asleep = False
        self.replicas: list[Replica] = []
        self.num_starts = 0
        self.policy: ServedPolicy | None = None  # what is being served and verified; None: nothing

    @property
    def version(self) -> str | None:
        return None if self.policy is None else self.policy.version

    @property
    def dead(self) -> bool:
        """Whether a server of ours has ended."""
        return any(one.server is not None and not one.server.alive() for one in self.replicas)

    @property
    def clients(self) -> list[ServerClient]:
        """One for each server, sampling from the served policy."""
        return [replica.client for replica in self.replicas]

    def serve(self, policy: ServedPolicy) -> None:
        """Sample from `policy` from now on: kept, given new weights, or (last) started anew."""
        self._wake()
        if self.version == policy.version and self.replicas and all(one.answers() for one in self.replicas):
            return
        policy.check_files()
        self.policy = None
        if self._settings.mode == "external":
            self._sync_all(policy)
        elif not self._synced(policy):
            self._start(policy)
        self.policy = policy

    def complete_many(self, requests: Sequence[CompletionRequest], stop: Event | None = None) -> Iterator[Numbered]:
        """(position, samples) of every request as it finishes, spread over the servers.

        When our own server is lost it is started again, at most vllm.max_restarts times, with the same policy, and
        only what is unfinished is asked again. stop: set by another thread, it ends with an AbandonedError.
        """
        assert self.policy is not None, "serve(policy) comes first"
        left = dict(enumerate(requests))
        starts_left = 0 if self._settings.mode == "external" else self._settings.max_restarts
        while left:
            positions = list(left)
            try:
                for index, completions in complete_over(self.clients, [*left.values()], self._settings, stop):
                    del left[positions[index]]
                    yield positions[index], completions
            except ServerLostError as error:
                if not starts_left:
                    raise
                starts_left -= 1
                _logger.warning("restarting the server, %d of %d requests left: %s", len(left), len(requests), error)
                self._start(self.policy)

    def rest(self) -> None:
        """The trainer needs the memory: what vllm.during_update says, until the next `serve`."""
        if self._settings.mode == "external" or not self.replicas:
            return
        way = rests_by(self._settings, installed_vllm().device)
        if way == "keep":
            return
        if way == "stop":
            self.stop()
            return
        try:
            for client in self.clients:
                client.sleep()
            self._asleep, self.policy = True, None  # verified again before the next sample
        except ServerError as error:
            _logger.warning("the server does not sleep, it is stopped: %s", error)
            self.stop()

    def stop(self) -> None:
        """End our own server, if one runs."""
        for replica in self.replicas:
            if replica.server is not None:
                replica.server.stop()
        self.replicas, self.policy, self._asleep = [], None, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wake(self) -> None:
        if not self._asleep:
            return
        self._asleep = False
        try:
            for client in self.clients:
                client.wake_up()
                client.reset_prefix_cache()
        except ServerError as error:
            _logger.warning("the server does not wake, it is started again: %s", error)
            self.stop()

    def _sync_all(self, policy: ServedPolicy) -> None:
        """Every server of vllm.server_urls; one that cannot be had or does not verify is left out, if others do."""
        synced, problems = [], []
        for url in self._settings.server_urls:
            try:
                replica = Replica.elsewhere(url, self._settings, self._log_dir)
                replica.sync(policy)
                synced.append(replica)
            except ServerError as error:
                problems.append(error)
                _logger.warning("left out until the next weights: %s", error)
        self.replicas = synced
        if not synced:
            raise problems[0]

    def _synced(self, policy: ServedPolicy) -> bool:
        """Whether our running server took the policy."""
        if not self.replicas or not self.replicas[0].answers():
            return False
        try:
            self.replicas[0].sync(policy)
        except ServerError as error:
            _logger.warning("restarting the server: %s", error)
            return False
        return True

    def _start(self, policy: ServedPolicy) -> None:
        self.stop()
        self.num_starts += 1
        server = VllmServer.start(
            policy.model_dir,
            version=policy.model_version,
            settings=self._settings,
            log_path=unused_log(self._log_dir, "vllm"),
            max_model_len=self._max_model_len,
            lora_rank=self._lora_rank,
            seed=self._seed,
            chat_template=self._chat_template,
        )
        try:
            replica = Replica.of(server, self._settings, self._log_dir)
            replica.sync(policy)
        except BaseException:
            server.stop()
            raise
        self.replicas, self.policy = [replica], policy
