"""The command `selfloop`, or python -m selfloop: `run` (`selfloop.run`) and `curate` (`selfloop.curate.tool`)."""

import signal
import sys

import typer

from selfloop import run
from selfloop.curate.tool import main as curate

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
app.command("run")(run.main)
app.command("curate")(curate)


def door() -> None:
    """What the console script calls; classes of one's own are looked for in the current folder, as by python -m."""
    sys.path.insert(0, "")
    signal.signal(signal.SIGTERM, run.stop)  # what a cluster sends before it kills
    app()


if __name__ == "__main__":
    door()
