"""The artifact store that the settings name."""

from __future__ import annotations

from shared.artifacts import Artifacts, open_store
from shared.errors import ArtifactError
from shared.grants import BY_GRANTS
from shared.s3 import S3Options
from shared.settings import Settings


def open_artifacts(settings: Settings) -> Artifacts:
    """The store that the settings name. Raises as ``open_store``; also for a worker's ``grants``, which is none."""
    if settings.artifacts == BY_GRANTS:
        raise ArtifactError("GENFLEET_ARTIFACTS=grants is for workers: gateways and schedulers need the store itself")
    return open_store(
        settings.artifacts,
        S3Options(
            endpoint=settings.s3_endpoint,
            public_endpoint=settings.s3_public_endpoint,
            region=settings.s3_region,
            access_key=settings.s3_access_key,
            secret_key=settings.s3_secret_key,
            session_token=settings.s3_session_token,
            path_style=settings.s3_path_style,
            allow_http=settings.s3_allow_http,
            ca=settings.s3_ca,
            timeout_s=settings.s3_timeout_s,
        ),
    )
