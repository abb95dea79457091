"""What goes wrong with a server and is not the user's mistake."""


class ServerError(RuntimeError):
    """The server failed, and went on failing for as long as retrying was allowed."""


class WeightSyncError(ServerError):
    """New weights did not arrive in the running server, or not the right ones; a restart may mend it."""
