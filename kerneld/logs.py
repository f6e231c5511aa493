"""Log lines of the daemon: one line each on stderr, as text or as a JSON object; facts come from `extra`, never from the message."""

from __future__ import annotations

import json
import logging
import sys

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LineFormatter(logging.Formatter):
    """`2026-11-21T10:00:00 WARNING kerneld.supervisor: worker is gone device=cpu0 reason="..."`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, with the traceback below it if there is one."""
        head = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')} {record.levelname} {record.name}: {record.getMessage()}"
        text = " ".join([head, *(f"{name}={json.dumps(fact, default=str)}" for name, fact in facts_of(record).items())])
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's time, level, logger, message, facts, and traceback."""
        line = {"at": record.created, "level": record.levelname, "logger": record.name, "message": record.getMessage(), **facts_of(record)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def facts_of(record: logging.LogRecord) -> dict[str, object]:
    """What was given as `extra`."""
    return {name: fact for name, fact in vars(record).items() if name not in _PLAIN}


def configure_logging(level: str, is_json: bool) -> None:
    """Write log lines of at least `level` to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if is_json else LineFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
