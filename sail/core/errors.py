"""The one error a user's mistake ends in."""

import errno

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError: the disk, a quota, a limit of the process


class UserError(ValueError):
    """Something the user can mend: bad input, a missing file, a setting that cannot work.

    The message is one line: where it is, what came and what was expected, and how to mend it. The command
    line prints it without a traceback and exits with code 2.
    """

    def __init__(self, problem: str, *, where: str = "", cure: str = "") -> None:
        self.problem = problem
        self.where = where
        self.cure = cure
        message = f"{where}: {problem}" if where else problem
        super().__init__(f"{message}. {cure}" if cure else message)


class WaitingForPeopleError(Exception):
    """A stage that cannot go on before people have answered. Nothing is wrong: the same command goes on afterwards.

    The command line prints the message and exits with code 3.
    """


class LaunchError(RuntimeError):
    """Processes that were started for a stage ended without its result."""
