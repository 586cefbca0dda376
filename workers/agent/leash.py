"""Become another program that dies with its parent: ``python leash.py PARENT_PID COMMAND [ARGUMENT …]``.

Linux's PR_SET_PDEATHSIG outlives ``exec`` and needs no code to run between fork and exec of a process with threads,
which is not safe. Imports nothing heavy: it is on the way of every launch.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask to be killed when the parent dies, then exec the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        # It died before the request was in place.
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
