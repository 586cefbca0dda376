"""One request in this process, without agent or bus: for benchmarks, tests, and a researcher's own scripts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from shared import intake
from shared.inputs import kind_of, make
from shared.intake import Rejected
from shared.messages import JobRequest, ModelCard, Reason
from workers.engine import attempt, devices
from workers.engine.course import Alone
from workers.engine.families.base import Family
from workers.engine.opening import open_model
from workers.engine.parallel.mesh import Mesh
from workers.engine.progress import Pace
from workers.link import Done, Pulse, Refused, Run
from workers.pool import Pool

_JOB = "direct"


class Direct:
    """A loaded model that does one request after another on one device.

    Args:
        pool: a pool of width 1, or the name or folder of a model.

    Raises:
        CannotLoad: as ``open_model``.
    """

    def __init__(self, pool: Pool | str | Path) -> None:
        self._pool = pool if isinstance(pool, Pool) else Pool(model=str(pool))
        kind = devices.detect(self._pool.device)
        self._device = devices.open_device(kind)
        self._family: Family = open_model(self._pool, self._device, Mesh(kind, 1))
        self._family.warm_up()
        self._pace = Pace()

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return self._family.card

    def run(
        self,
        request: JobRequest,
        inputs: Mapping[str, Path],
        out_dir: Path,
        on_pulse: Callable[[Pulse], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> attempt.Answer:
        """Do the request; the answer is what rank 0 of a group would give."""
        with tempfile.TemporaryDirectory(prefix="genfleet-direct-") as folder:
            try:
                named = intake.at_once(decoded(request, inputs, Path(folder))) if inputs else {}
            except Rejected as error:
                return Refused(job=_JOB, epoch=1, reason=Reason.INPUT_REJECTED, message=str(error))
            return self._run(request, named, out_dir, on_pulse, should_stop)

    def _run(
        self,
        request: JobRequest,
        inputs: dict[str, str],
        out_dir: Path,
        on_pulse: Callable[[Pulse], None],
        should_stop: Callable[[], bool],
    ) -> attempt.Answer:
        run = Run(job=_JOB, epoch=1, request=request, inputs=inputs, out_dir=str(out_dir))
        prepared = attempt.prepare(self._family, run)
        if isinstance(prepared, Refused):
            return prepared
        try:
            return attempt.lead(self._family, self._device, Alone(), run, prepared, self._pace, on_pulse, should_stop)
        except Exception as error:
            self._family.forget()
            return attempt.broke(self._device, run, error)


async def decoded(request: JobRequest, inputs: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """The inputs as files of frames, as an agent has them made."""
    made = {}
    decoder = intake.Intake()
    try:
        for name, path in inputs.items():
            made[name] = str(folder / f"{name}.frames")
            allowed = kind_of(name).allowed
            await decoder.make(path, Path(made[name]), name, allowed, make(name, request))
    except (Rejected, FileNotFoundError) as error:
        raise Rejected(f"{name}: {error}") from error
    finally:
        await decoder.close()
    return made


class DirectError(Exception):
    """The request was refused, broke or was stopped; ``answer`` says which and why."""

    def __init__(self, answer: attempt.Answer) -> None:
        super().__init__(str(answer))
        self.answer = answer


def generate(
    pool: Pool | str | Path,
    request: JobRequest,
    inputs: Mapping[str, Path],
    out_dir: Path,
    on_pulse: Callable[[Pulse], None] = lambda _: None,
) -> Done:
    """Load, do one request, and give what was made.

    Raises:
        CannotLoad: as ``open_model``.
        DirectError: the request was not done.
    """
    answer = Direct(pool).run(request, inputs, out_dir, on_pulse)
    if not isinstance(answer, Done):
        raise DirectError(answer)
    return answer
