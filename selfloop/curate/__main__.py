"""python -m selfloop.curate: see `selfloop.curate.tool`."""

import signal

from selfloop.curate.tool import app
from selfloop.run import stop

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)  # what a cluster sends before it kills
    app()
