"""The last lines that a program logged, kept so that a client can ask for them."""

from __future__ import annotations

import logging
from collections import deque

from shoal.shell import doors

FORMAT = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"


def print_from(level: int) -> None:
    """Have lines of this level and above printed; what shoal says for information is made in any case, and kept."""
    logging.basicConfig(format=FORMAT)
    for handler in logging.getLogger().handlers:
        handler.setLevel(level)
    logging.getLogger("shoal").setLevel(min(level, logging.INFO))


class LogKeeper(logging.Handler):
    """Keeps the last lines of some loggers.

    Parameters
    ----------
    length
        How many.
    about
        Only those that hold this text.
    """

    def __init__(self, length: int, about: str = "") -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(FORMAT))
        self._about = about
        self._lines: deque[tuple[str, str]] = deque(maxlen=length)
        self._newest: logging.LogRecord | None = None
        self._attached: list[logging.Logger] = []

    def attach(self, *names: str) -> None:
        """Keep what these loggers are told from now on."""
        for name in names:
            logger = logging.getLogger(name)
            logger.addHandler(self)
            self._attached.append(logger)

    def emit(self, record: logging.LogRecord) -> None:
        if record is self._newest:  # it came by way of another logger too
            return
        self._newest = record
        try:
            text = self.format(record)
        except BaseException as error:  # of what is logged: its own text is code of users'
            text = f"{record.name} - {record.levelname} - (cannot be shown: {doors.text_of(error)})"
        if self._about in text:
            self._lines.append((record.levelname, text))

    def last(self, count: int | None = None) -> list[tuple[str, str]]:
        """Level and text of the last lines, the newest last."""
        lines = list(self._lines)
        return lines if count is None else lines[max(0, len(lines) - count) :]

    def close(self) -> None:
        """Let go of the loggers; what was kept stays."""
        for logger in self._attached:
            logger.removeHandler(self)
        self._attached.clear()
        super().close()
