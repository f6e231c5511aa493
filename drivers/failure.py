"""Errors on the wire: a DriverError as a message, and back."""

from __future__ import annotations

from drivers import errors
from drivers.wire import Failed


def describe_error(request_id: int, error: errors.DriverError) -> Failed:
    """Return a DriverError as a message. A class that only its driver knows travels as the nearest one of `drivers.errors`."""
    kind = next(base.__name__ for base in type(error).__mro__ if getattr(errors, base.__name__, None) is base)
    facts = {name: fact for name, fact in vars(error).items() if isinstance(fact, int | str | tuple)}
    return Failed(request_id, kind, str(error), facts)


def restore_error(failed: Failed) -> errors.DriverError:
    """Return the error that a Failed tells of: same class, same text, same facts."""
    kind = getattr(errors, failed.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, errors.DriverError)):
        kind = errors.DriverError
    error = kind.__new__(kind)
    Exception.__init__(error, failed.text)
    vars(error).update(failed.facts)
    return error
