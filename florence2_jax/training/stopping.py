# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and SIGINT end a run after a step, on every host after the same one."""

import signal
import threading
from typing import Any

from jax.experimental import multihost_utils

from florence2_jax.parallel import processes


class Stopping:
    """Whether a run was asked to stop; a second SIGINT aborts it where it is.

    With several processes, a SIGTERM to any of them is known to all through JAX's coordination
    service, which names the step after which all stop. Use as a context manager.
    """

    def __init__(self):
        self.is_asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python lets no other thread handle signals.
        self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._on_signal)
        if processes.is_alone():  # Else JAX handles SIGTERM.
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after every step, on every host."""
        if processes.is_alone():
            return self.is_asked
        return multihost_utils.reached_preemption_sync_point(step)

    def _on_signal(self, number: int, _: object) -> None:
        if self.is_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_asked = True
        if not processes.is_alone():
            signal.raise_signal(signal.SIGTERM)
