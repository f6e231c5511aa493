"""The thread of a worker that inspects, loads and parks models while the main thread runs steps."""

from __future__ import annotations

import logging
import queue
import threading
import uuid
from collections.abc import Callable

from drivers.contract import Driver
from drivers.errors import DriverError
from drivers.failure import describe_error
from drivers.wire import Failed, HeldModel, Inspect, Inspected, Load, Loaded, LoadProgress, Message, Park, Parked

logger = logging.getLogger(__name__)


class SideThread:
    """Inspects, loads and parks beside the steps, one request at a time, in order."""

    def __init__(self, driver: Driver, models: dict[int, HeldModel], send: Callable[[Message], None]) -> None:
        """Begin. Loaded models are entered into `models`; `send` is called from the thread."""
        self._driver = driver
        self._models = models
        self._send = send
        self._requests: queue.SimpleQueue[Load | Inspect | Park | None] = queue.SimpleQueue()
        self._is_finishing = False
        # A daemon thread: a worker that has to go does not wait for a load.
        self.thread = threading.Thread(target=self._work, name="side", daemon=True)
        self.thread.start()

    def submit(self, request: Load | Inspect | Park) -> None:
        """Do this after what was submitted before, and answer it."""
        self._requests.put(request)

    def finish(self) -> None:
        """Begin nothing more; `thread` ends once the request at hand is done."""
        self._is_finishing = True
        self._requests.put(None)

    def _work(self) -> None:
        while (request := self._requests.get()) is not None and not self._is_finishing:
            try:
                self._send(self._answer(request))
            except OSError as error:
                logger.warning("Answer lost with the front", extra={"request_id": request.request_id, "reason": str(error)})

    def _answer(self, request: Load | Inspect | Park) -> Inspected | Loaded | Parked | Failed:
        try:
            if isinstance(request, Park):
                return Parked(request.request_id, self._driver.park(request.model_id, request.host_offsets))
            return self._inspect(request) if isinstance(request, Inspect) else self._load(request)
        except DriverError as error:
            return describe_error(request.request_id, error)
        except Exception as error:
            # A loop top: a model file that trips a parser costs its sender one request, never the others their worker.
            error_id = uuid.uuid4().hex[:12]
            logger.error("Request failed", extra={"error_id": error_id}, exc_info=error)
            return describe_error(request.request_id, DriverError(f"{type(error).__name__}; error id {error_id}."))

    def _inspect(self, request: Inspect) -> Inspected:
        return Inspected(request.request_id, self._driver.inspect(request.spec))

    def _load(self, request: Load) -> Loaded:
        def tell(bytes_done: int, bytes_total: int) -> None:
            self._tell(LoadProgress(request.request_id, bytes_done, bytes_total))

        loaded = self._driver.load(request.spec, tell)
        self._models[request.spec.model_id] = HeldModel(request.weights_key, request.spec, loaded)
        return Loaded(request.request_id, loaded)

    def _tell(self, progress: LoadProgress) -> None:
        """Send progress; a front that is gone does not stop the load, the next one may want the model."""
        try:
            self._send(progress)
        except OSError as error:
            logger.debug("Progress lost with the front", extra={"reason": str(error)})
