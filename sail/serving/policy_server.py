"""The server of the current policy: started once, given new weights, restarted only when that fails."""

import logging
from pathlib import Path
from types import TracebackType
from typing import Self

from sail.core.errors import UserError
from sail.core.run_settings import VllmSettings
from sail.serving.client import ServerClient
from sail.serving.errors import ServerError, WeightSyncError
from sail.serving.model_files import eos_token_ids, tensor_layout
from sail.serving.probes import probes_for
from sail.serving.server import VllmServer
from sail.serving.weight_sync import Score, SyncReport, sync_weights, tolerance_nats, verify_weights

_logger = logging.getLogger(__name__)


class PolicyServer:
    """Serves one policy version at a time, verified against the trainer's log-probs.

        with PolicyServer(settings.vllm, run_dir / "logs") as policy_server:
            client = policy_server.serve(checkpoint_dir, version="3fa9...", score=trainer_logprobs)

    mode server: our own process. mode external: settings.server_urls[0], never started or stopped, same sync;
    it must run with the flags of sail.serving.flags and see the same files.
    """

    def __init__(
        self, settings: VllmSettings, log_dir: Path, *, max_model_len: int | None = None, seed: int = 0
    ) -> None:
        if settings.mode == "external" and not settings.server_urls:
            raise UserError("mode external has no server", where="vllm.server_urls", cure="List its URL there")
        self._settings = settings
        self._log_dir = log_dir
        self._max_model_len = max_model_len
        self._seed = seed
        self.server: VllmServer | None = None
        self._client: ServerClient | None = None
        self.num_starts = 0
        self.version: str | None = None  # what is being served and verified; None: nothing
        self.last_report: SyncReport | None = None

    def serve(self, model_dir: Path, version: str, score: Score) -> ServerClient:
        """A client of a server that samples from `model_dir`: kept, reloaded, or (last) started anew."""
        if self.version == version and self._client is not None and self._answers():
            return self._client
        tensor_layout(model_dir)
        self.version = None
        client = (
            self._external(model_dir, version, score) if self._is_external else self._own(model_dir, version, score)
        )
        self._client, self.version = client, version
        return client

    def stop(self) -> None:
        """End our own server, if one runs."""
        if self.server is not None:
            self.server.stop()
        self.server = self._client = self.version = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _is_external(self) -> bool:
        return self._settings.mode == "external"

    def _answers(self) -> bool:
        owned = self._is_external or (self.server is not None and self.server.alive())
        return owned and self._client is not None and self._client.health()

    def _external(self, model_dir: Path, version: str, score: Score) -> ServerClient:
        client = self._new_client(self._settings.server_urls[0], None, model_dir)
        if any(state["version"] != version for state in client.collective_rpc("sail_state")):
            sync_weights(None, client, model_dir, version)
        self._verify(client, model_dir, version, score)
        return client

    def _own(self, model_dir: Path, version: str, score: Score) -> ServerClient:
        if self.server is not None and self._answers():
            client = self._new_client(self.server.base_url, self.server.model_name, model_dir)
            try:
                sync_weights(self.server, client, model_dir, version)
                self._verify(client, model_dir, version, score)
                return client
            except WeightSyncError as error:
                _logger.warning("restarting the server: %s", error)
        return self._restart(model_dir, version, score)

    def _restart(self, model_dir: Path, version: str, score: Score) -> ServerClient:
        self.stop()
        self.num_starts += 1
        self.server = VllmServer.start(
            model_dir,
            settings=self._settings,
            log_path=self._log_dir / f"vllm-{self.num_starts}.log",
            max_model_len=self._max_model_len,
            seed=self._seed,
        )
        client = self._new_client(self.server.base_url, self.server.model_name, model_dir)
        try:
            self._verify(client, model_dir, version, score)
        except ServerError:
            self.stop()
            raise
        return client

    def _verify(self, client: ServerClient, model_dir: Path, version: str, score: Score) -> None:
        dtype = client.collective_rpc("sail_state")[0]["dtype"]
        probes = probes_for(model_dir, client.max_model_len)
        self.last_report = verify_weights(
            client, version, probes, score, tolerance_nats=tolerance_nats(self._settings, dtype)
        )

    def _new_client(self, url: str, model: str | None, model_dir: Path) -> ServerClient:
        return ServerClient(url, model=model, settings=self._settings, eos_ids=eos_token_ids(model_dir))
