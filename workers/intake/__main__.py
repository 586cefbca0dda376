"""``python -m workers.intake <descriptor>``: started by ``shared.intake``, which holds the other end of that socket."""

from __future__ import annotations

import gc
import os
import resource
import socket
import sys

# The clips' library would load it if it were there; nothing here needs it, and it starts threads.
sys.modules["numpy"] = None  # type: ignore[assignment]

import av  # noqa: E402

from workers.intake import process, rehearsal  # noqa: E402


def main(arguments: list[str]) -> None:
    """Serve the client at the other end of the socket whose descriptor is the only argument."""
    if len(arguments) != 1 or not arguments[0].isdigit():
        sys.exit(__doc__)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.clear()
    av.logging.set_level(None)
    rehearsal.rehearse()
    # What is there now stays: children share it as long as nobody writes to it.
    gc.collect()
    gc.freeze()
    process.serve(socket.socket(fileno=int(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
