"""The view with a progress bar. It is imported only for a terminal, because rich takes long to load."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

from api.cli.views import View
from api.cli.words import change_line, printable, sheet_name, sheet_notes

MOST_SHEETS = 8


class TerminalView(View):
    """A progress bar. Below it stand the sheets in work; above it the forecast, and a line for each failed sheet and each note."""

    def __init__(self) -> None:
        super().__init__()
        self._trouble = ""
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._bar = Progress(
            BarColumn(bar_width=32),
            TextColumn("{task.fields[words]}", markup=False),
            console=self._console,
        )
        self._task = self._bar.add_task("", total=None, words="")
        self._live = Live(console=self._console, transient=True, get_renderable=self._render)

    def __exit__(self, *_: object) -> None:
        """Shows the cursor again."""
        self._live.stop()

    @contextmanager
    def sending(self, size_bytes: int) -> Iterator[Callable[[int], None]]:
        """Shows how many bytes are sent."""
        with Progress(
            TextColumn("sending"),
            BarColumn(bar_width=32),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
        ) as bar:
            task = bar.add_task("", total=size_bytes)
            yield lambda sent_bytes: bar.advance(task, sent_bytes)

    def show_event(self, name: str, document: Mapping[str, Any]) -> None:
        """Updates the bar, and prints a line for each change that a person should see."""
        last = self.progress.head
        changes = self.progress.apply(document)
        completed, total = document["completedPages"], document["totalPages"] or None
        self._trouble = ""
        if not self._live.is_started:
            self._live.start()
        if line := self.new_forecast(last):
            self._console.print(line)
        for before, sheet in changes:
            if line := change_line(before, sheet):
                self._console.print(printable(line), style="red" if sheet["status"] == "failed" else "yellow")
            elif sheet["status"] == "ready" and last:  # the notes of the sheets in the first snapshot are not repeated here
                for line in sheet_notes(sheet):
                    self._console.print(printable(line), style="yellow")
        self._bar.update(self._task, total=total, completed=completed, words=self._words())

    def show_trouble(self, sentence: str) -> None:
        """Shows the sentence below the bar until the connection is back."""
        self._trouble = sentence
        if sentence and not self._live.is_started:
            self._console.print(printable(sentence))

    def _words(self) -> str:
        head = self.progress.head
        if not head["totalPages"]:
            return "waiting for a worker" if head["status"] == "queued" else "counting the pages"
        left = self.progress.time_left
        return f"{head['progress']} %  {self.progress.ready_count}{f'  {left}' if left else ''}"

    def _render(self) -> Group:
        in_work = self.progress.sheets_in("uploading") + self.progress.sheets_in("tiling")
        lines = [(f"  {sheet['status']:<9}  {sheet_name(sheet)}", "dim") for sheet in in_work]
        most = max(0, min(MOST_SHEETS, self._console.height - 5))
        if len(lines) > most:
            lines[most:] = [(f"  and {len(lines) - most} more", "dim")]
        lines += [(line, "yellow") for line in (self.progress.head.get("warning"), self._trouble) if line]
        return Group(self._bar, *(Text(printable(line), style, no_wrap=True, overflow="ellipsis") for line, style in lines))
