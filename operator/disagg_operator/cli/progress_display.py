"""What a command that takes long says on stderr while it works.

On a terminal it is a line with a bar that goes away in the end; elsewhere, such as in a log, each
step is one line.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class ProgressDisplay:
    """The progress of a command, used by `with`.

    `say` begins a step and `reach` tells how much of it is done. Steps of unknown length only show
    the time.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._step: TaskID | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Begin a step."""
        if self._bar is None:
            self._console.print(f"{text} ...", highlight=False, markup=False, soft_wrap=True)
            return
        if self._step is not None:
            self._bar.remove_task(self._step)
        self._step = self._bar.add_task(text, total=None)

    def reach(self, share: float) -> None:
        """Tell the share of the step that is done, 0 to 1."""
        if self._bar is not None and self._step is not None:
            self._bar.update(self._step, total=1.0, completed=min(1.0, share))
