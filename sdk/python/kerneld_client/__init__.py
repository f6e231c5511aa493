"""The Python client of kerneld: `with kerneld_client.connect() as k: ...`; `kerneld_client.aio` is the same with await."""

from kerneld_client import errors
from kerneld_client.client import Client, connect
from kerneld_client.context import Context
from kerneld_client.errors import KerneldError
from kerneld_client.target import Tls
from kerneld_client.values import Delta, Image, Limits, Result
from kerneld_client.wire import Stream

__all__ = [
    "Client",
    "Context",
    "Delta",
    "Image",
    "KerneldError",
    "Limits",
    "Result",
    "Stream",
    "Tls",
    "connect",
    "errors",
]
