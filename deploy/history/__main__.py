"""The checker for people:

    python -m deploy.history --nats-url nats://127.0.0.1:4222 --artifacts DIR [--submits FILE] [--at-rest] [--contents]

``--submits`` names a file of JSON lines, one ``Submit`` each, written by a client at each 2xx it got. ``--at-rest``
says that every job should have ended. Other settings come from the environment, as for every service. The exit status
is 1 when a promise is broken, and 2 when that could not be found out.
"""

from __future__ import annotations

import sys

import cyclopts

from deploy.history.command import main

if __name__ == "__main__":
    app = cyclopts.App(name="python -m deploy.history", help_format="plaintext", result_action="return_value")
    app.default(main)
    sys.exit(app())
