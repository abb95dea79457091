"""A vLLM server as a supervised process: it starts, it is really ready, and it never outlives us."""

import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from sail.core.run_settings import VllmSettings
from sail.serving import guard
from sail.serving.errors import RequestRefusedError, ServerError
from sail.serving.exchange import UNIX, Exchange
from sail.serving.flags import LaunchPlan, server_command, server_environment
from sail.serving.model_files import tensor_layout
from sail.serving.ports import reserved_address
from sail.serving.processes import descendants, send_signal
from sail.serving.start_failures import PORT_TAKEN, log_tail, start_failure
from sail.serving.versions import installed_vllm

_PORT_ATTEMPTS = 3
_POLL_S = 0.25
_COMPLETION = "/v1/completions", {"prompt": [1, 1], "max_tokens": 1, "temperature": 0.0}
_SCORE = "/classify", {"input": [1, 1]}
_STOP_S = guard.GRACE_S + guard.KILL_S + 5.0


class VllmServer:
    """One server process (behind its guard) for one model directory. Make it with `start`."""

    def __init__(
        self, process: subprocess.Popen[bytes], plan: LaunchPlan, settings: VllmSettings, log_path: Path
    ) -> None:
        self._process = process
        self.model_dir = plan.model_dir
        self.model_name = plan.model_name  # unique: a request that reaches another server is refused there
        self.layout = tensor_layout(plan.model_dir)
        self._ready = _SCORE if plan.scores else _COMPLETION
        self.base_url = plan.base_url
        self.pid = process.pid
        self.log_path = log_path

    @classmethod
    def start(
        cls,
        model_dir: Path,
        *,
        version: str,
        settings: VllmSettings,
        log_path: Path,
        max_model_len: int | None,
        lora_rank: int | None = None,
        seed: int = 0,
        scores: bool = False,
        chat_template: Path | None = None,
    ) -> "VllmServer":
        """Start and wait until it answers, at most settings.start_timeout_s.

        Ready means: the process lives, /health is 200, and a completion (of a reward model, a score) came back.
        Raises UserError for what the user can mend (no vLLM, port taken, no memory), ServerError otherwise, both with
        the end of the log.
        """
        tensor_layout(model_dir)
        device = installed_vllm().device
        deadline = time.monotonic() + settings.start_timeout_s
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            with reserved_address(settings) as base_url:
                name = f"sail-{uuid.uuid4().hex[:12]}"
                length = settings.max_model_len or max_model_len
                plan = LaunchPlan(
                    model_dir.resolve(), name, version, base_url, device, length, lora_rank, seed, scores, chat_template
                )
                server = _launch(cls, plan, settings, log_path)
                if server._wait_until_ready(deadline):
                    return server
            lost_the_race = settings.port == 0 and PORT_TAKEN in log_tail(log_path)
            if not lost_the_race or attempt == _PORT_ATTEMPTS:
                break
        if time.monotonic() > deadline:
            told = f"not ready after {settings.start_timeout_s:g} s (vllm.start_timeout_s)"
            raise ServerError(f"the vLLM server was {told}; its log {log_path} ends:\n{log_tail(log_path)}")
        raise start_failure(log_path, "did not start")

    def alive(self) -> bool:
        """Whether the server process runs. It may still have lost its engine: the next request tells."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End the server and all its processes: SIGTERM, a bounded wait, SIGKILL."""
        if self.alive():
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                send_signal([*descendants(self.pid), self.pid], signal.SIGKILL)
                self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self.base_url.startswith(UNIX):
            shutil.rmtree(Path(self.base_url.removeprefix(UNIX)).parent, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self, deadline: float) -> bool:
        """Whether it came up; it is stopped if not, also by an exception such as Ctrl-C."""
        ready = False
        try:
            while not ready and self.alive() and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                exchange = Exchange(self.base_url, timeout_s=max(1.0, deadline - time.monotonic()))
                ready = exchange.answers("/health") and self._answers_truly(exchange)
        finally:
            if not ready:
                self.stop()
        return ready

    def _answers_truly(self, exchange: Exchange) -> bool:
        """One real request by our own model name: a healthy stranger on this port does not count."""
        path, body = self._ready
        try:
            exchange.done("POST", path, {"model": self.model_name, **body})
        except RequestRefusedError as error:
            raise ServerError(f"a server at {self.base_url} refuses a plain request: {error}") from None
        except ServerError:
            return False
        return True


def _launch(kind: type[VllmServer], plan: LaunchPlan, settings: VllmSettings, log_path: Path) -> VllmServer:
    command = [sys.executable, "-m", guard.__name__, *server_command(plan, settings)]
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("wb") as log:
        log.write((" ".join(command) + "\n").encode())
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=server_environment(settings, plan.device, plan.version),
        )
    return kind(process, plan, settings, log_path)
