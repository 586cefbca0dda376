"""The operator's judge, before a job is accepted (``shared.moderation``): its no is the client's fault, its silence is
not."""

from __future__ import annotations

from gateway.problems import Problem, invalid
from shared.messages import JobRecord
from shared.moderation import AskedRequest, Denied, Moderation, NoJudgement, asked_inputs
from shared.telemetry import log

_RETRY_AFTER_S = 5

_log = log(__name__)


async def judged(moderation: Moderation, record: JobRecord) -> None:
    """Ask about a job that is about to be made.

    Raises:
        Problem: 422 on ``moderation`` with the judge's category, or 503: it did not answer, so the job is not accepted.
    """
    if not moderation.asks:
        return
    request = record.request
    asked = AskedRequest(
        job=record.id,
        tenant=record.tenant,
        model=request.model,
        task=request.task,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        inputs=asked_inputs(request.inputs()),
    )
    try:
        await moderation.request(asked)
    except Denied as denied:
        _log.info("request_denied", category=denied.category, tenant=record.tenant)
        raise invalid("moderation", str(denied)) from denied
    except NoJudgement as error:
        _log.warning("moderation_unreachable", error=str(error))
        text = "the request could not be moderated, so the job was not accepted: try again"
        raise Problem(503, text, job=record.id, retry_after_s=_RETRY_AFTER_S) from error
