"""Ctrl-C, which ends a run between two steps and not in the middle of one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STANDARD_ERROR = 2
NOTE = b"\nhast-lightning: this step is finished and saved; Ctrl-C again ends at once\n"


class Interruption:
    """Whether the user asked for the end.

    The first Ctrl-C is remembered, so that whoever goes through the steps can save a whole one and
    end then; the second is Python's own, which ends anywhere.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Take over Ctrl-C inside, where Python's own handler has it and this is the main thread.

        Raises:
            KeyboardInterrupt: it was asked for, and nobody has ended inside.
        """
        theirs = signal.getsignal(signal.SIGINT)
        in_main = threading.current_thread() is threading.main_thread()
        # A process in the background ignores Ctrl-C, and a notebook may have a handler of its own.
        if not in_main or theirs is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._remember)
        try:
            yield
        finally:
            # Lightning has it ignored from the first Ctrl-C on.
            signal.signal(signal.SIGINT, theirs)
        if self.asked:
            raise KeyboardInterrupt

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = True
        # Printing is not allowed in a handler, which may have come in the middle of a print.
        os.write(STANDARD_ERROR, NOTE)
