"""``make demo``: a photograph becomes a video through a whole fleet, which is started for it and stopped afterwards.

The job is submitted by the same command that a user types, so what is shown is what there is.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from deploy.local import serve
from shared.errors import GenfleetError
from shared.settings import Settings, variable

PHOTO = Path("deploy", "assets", "photo.jpg")
RESULT = Path("demo.mp4")
JOB = ("--prompt", "the camera pans left", "--image", str(PHOTO), "--seed", "1")


async def demo(result: Path) -> int:
    """Start a fleet on free ports, submit the job, save its result, stop the fleet; the exit code."""
    settings = Settings(port=0, data_dir=".run/demo", device="cpu")
    codes: list[int] = []

    async def submit(url: str) -> None:
        arguments = ("submit", *JOB, "--watch", "--output", str(result))
        print(f"{url} is ready.\n$ genfleet {shlex.join(arguments)}", flush=True)
        environ = {name: value for name, value in os.environ.items() if not name.startswith(variable(""))}
        environ[variable("url")] = url
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "deploy.cli", *arguments, env=environ)
        try:
            codes.append(await process.wait())
        finally:
            if process.returncode is None:  # we were told to stop: Ctrl-C lets it put the terminal in order
                process.send_signal(signal.SIGINT)
                with suppress(TimeoutError):
                    async with asyncio.timeout(5):
                        await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()

    await serve(settings, _tell, submit)
    return codes[0] if codes else 130


def _tell(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def main() -> int:
    """Run it and say where the video is."""
    began = time.monotonic()
    print("Starting a fleet on this machine: nats-server, gateway, scheduler, worker.", flush=True)
    try:
        code = asyncio.run(demo(RESULT))
    except GenfleetError as error:
        print(f"The demo did not start: {error}", file=sys.stderr)
        return 1
    if code == 0:
        size = RESULT.stat().st_size
        print(f"The video: {RESULT.absolute()} ({size / 1000:.0f} kB, {time.monotonic() - began:.0f} s in all)")
    return code


if __name__ == "__main__":
    sys.exit(main())
