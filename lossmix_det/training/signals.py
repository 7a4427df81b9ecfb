"""Being told to stop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

log = logging.getLogger(__name__)


class catching_signals:  # noqa: N801 - used like a function
    """Within the block SIGTERM and SIGINT only call ``ask``, once; a second one does what it did before."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self.ask = ask

    def __enter__(self) -> None:
        self.before = {number: signal.signal(number, self._received) for number in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _received(self, number: int, frame: object) -> None:
        self.ask()
        signal.signal(number, self.before[number])
        log.warning("received %s; saving after this step", signal.Signals(number).name)
