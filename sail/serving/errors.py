"""What goes wrong with a server and is not the user's mistake."""


class ServerError(RuntimeError):
    """The server failed, and went on failing for as long as retrying was allowed."""

    position: int | None = None  # of the request, where it was one of many


class AbandonedError(RuntimeError):
    """Whoever waited for the answers has left; no server is to blame."""


class RequestRefusedError(ServerError):
    """The server answered with an error that a second try would not change."""

    def __init__(self, told: str, status: int) -> None:
        super().__init__(told)
        self.status = status


class WeightSyncError(ServerError):
    """New weights did not arrive in the running server, or not the right ones; a restart may mend it."""


class ServerLostError(ServerError):
    """No server is left to ask; one of ours is started again."""


class TransientError(ServerError):
    """One request failed in a way that may pass: a disconnect, a timeout, a 5xx, an aborted sample."""

    def __init__(self, told: str, status: int | None = None, wait_s: float = 0.0) -> None:
        super().__init__(told)
        self.status = status
        self.wait_s = wait_s  # what the server asked for before another try


class DisconnectedError(TransientError):
    """The server was not reached, or left in the middle of an answer."""


class SlowError(TransientError):
    """No answer came in time: the server may have been asked for too much at once."""


class OtherModelError(RequestRefusedError):
    """The server does not know the model we asked for: it was started again, or is another one."""
