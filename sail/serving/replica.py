"""One server and the policy it samples from: ours, or one that was started elsewhere."""

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sail.core.run_settings import VllmSettings
from sail.serving.client import ServerClient
from sail.serving.errors import ServerError, WeightSyncError
from sail.serving.probes import probes_for
from sail.serving.served_policy import Held, ServedPolicy
from sail.serving.server import VllmServer
from sail.serving.verification import SyncReport, tolerance_nats, verify_weights
from sail.serving.weight_sync import WAYS

_logger = logging.getLogger(__name__)
SYNC_LOG = "weight-sync.jsonl"


@dataclass
class Replica:
    """A running server, what it holds, and the client that samples from the policy last synced into it."""

    client: ServerClient  # asks for the whole model, until a policy is synced
    held: Held
    dtype: str
    settings: VllmSettings
    log_dir: Path
    server: VllmServer | None = None  # None: not ours
    report: SyncReport | None = None

    @classmethod
    def elsewhere(cls, url: str, settings: VllmSettings, log_dir: Path) -> "Replica":
        """A server that was started by `sail serve`."""
        client = ServerClient(url, model=None, settings=settings)
        state = client.collective_rpc("sail_state")[0]
        held = Held(None, state["version"], state["takes_adapters"], state["transfer"])
        return cls(client, held, state["dtype"], settings, log_dir)

    @classmethod
    def of(cls, server: VllmServer, settings: VllmSettings, log_dir: Path) -> "Replica":
        """A server we have just started."""
        client = ServerClient(server.base_url, model=server.model_name, settings=settings)
        state = client.collective_rpc("sail_state")[0]
        held = Held(server.layout, state["version"], state["takes_adapters"], state["transfer"])
        return cls(client, held, state["dtype"], settings, log_dir, server)

    def answers(self) -> bool:
        """Whether the server lives, as far as can be told without a completion, and nobody gave it other weights."""
        if self.server is not None:
            return self.server.alive() and self.client.health()
        try:
            return self.client.weights() == self.client.holds
        except ServerError:
            return False

    def sync(self, policy: ServedPolicy) -> None:
        """Sample from `policy` from now on, verified; WeightSyncError when every way into this server failed."""
        whole = ServerClient(self.client.base_url, model=self._model_name, settings=self.settings)
        problems = []
        for name, way in WAYS.items():
            started = time.monotonic()
            try:
                way.prepare(policy, self.held)
                way.apply(policy, self.held, whole)
                self._verify(policy, whole, name, started)
                return
            except ServerError as error:
                problems.append(f"{name}: {error}")
        raise WeightSyncError(f"{self.client.base_url} does not serve version {policy.version} ({'; '.join(problems)})")

    @property
    def _model_name(self) -> str | None:
        return None if self.server is None else self.server.model_name

    def _verify(self, policy: ServedPolicy, whole: ServerClient, way: str, started: float) -> None:
        holds = whole.weights() if self.server is None else None  # read first: what is verified is later than that
        client = whole.asking_for(policy.version if policy.adapter_dir else whole.model, policy.eos_ids, holds)
        probes = probes_for(policy.model_dir, client.max_model_len)
        tolerance = tolerance_nats(self.settings, self.dtype)
        self.report = verify_weights(client, policy.version, probes, policy.score, tolerance_nats=tolerance)
        self.client = client
        self._write_down(policy, way, time.monotonic() - started)

    def _write_down(self, policy: ServedPolicy, way: str, seconds: float) -> None:
        assert self.report is not None
        entry = {"version": policy.version, "server": self.client.base_url, "way": way, "seconds": round(seconds, 3)}
        self.log_dir.mkdir(parents=True, exist_ok=True)
        with (self.log_dir / SYNC_LOG).open("a") as log:
            log.write(json.dumps(entry | asdict(self.report)) + "\n")
        _logger.info("%s serves %s (%s), off by %.2g nats at most", self.client.base_url, policy.version, way,
                     self.report.max_abs_nats)  # fmt: skip
