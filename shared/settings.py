"""Every setting of genfleet, in one place: a field here, ``GENFLEET_<FIELD>`` in the environment, the same name in
lower case in the optional TOML file that ``GENFLEET_CONFIG`` names. The environment wins over the file.

An unknown name is refused, because a misspelt limit that does nothing is worse than an error. A value may come from
a file: ``GENFLEET_NATS_TOKEN_FILE=/run/secrets/token`` sets ``nats_token`` to that file's stripped content.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from shared.errors import SettingsError

PREFIX = "GENFLEET_"

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
WorkerName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings with their defaults. Durations in seconds, sizes in bytes."""

    # every service
    nats_url: str = "nats://127.0.0.1:4222"
    nats_token: str = ""
    #: Instead of a token: the seed of this service's own nkey, or its user's name and password.
    nats_nkey: str = ""
    nats_user: str = ""
    nats_password: str = ""
    #: File of the certificates (PEM) by one of which the broker's must be signed; given, nothing is said unencrypted.
    nats_ca: str = ""
    #: Files of this service's own certificate and its key, if the broker asks for one.
    nats_cert: str = ""
    nats_key: str = ""
    #: What keys, links and signatures are derived from; the same on every replica. At least 32 random characters.
    secret: str = ""
    #: Copies of each bucket in a NATS cluster; more than one needs nats-server 2.10.27 or later.
    nats_replicas: Literal[1, 3, 5] = 1
    #: Where files live: a folder, or ``s3://bucket/prefix``.
    artifacts: str = "genfleet-data/artifacts"
    #: How such a bucket is reached; what is empty comes from the usual ``AWS_…`` variables.
    s3_endpoint: str = ""
    #: The endpoint as clients reach it, for signed URLs; empty: the same.
    s3_public_endpoint: str = ""
    s3_region: str = ""
    s3_access_key: str = ""
    s3_secret_key: str = ""
    s3_session_token: str = ""
    #: The bucket in the path (MinIO), and not in the host's name (most clouds).
    s3_path_style: bool = True
    s3_allow_http: bool = False
    #: Certificates in PEM that are trusted besides the system's.
    s3_ca: str = ""
    #: A store that is silent for so long is asked again, for up to twice as long.
    s3_timeout_s: Seconds = 30.0
    #: Files are asked of the gateway and fetched from the bucket: it answers with a URL that the bucket signs.
    s3_redirect: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_file: str = ""
    #: Port of /metrics of scheduler and worker on the loopback or ``metrics_host``; 0 switches it off.
    metrics_host: str = "127.0.0.1"
    scheduler_metrics_port: Port = 0
    worker_metrics_port: Port = 0

    #: Networks that inputs by URL may reach although they are not public: ``10.1.0.0/16, fd00::/8``.
    private_networks: str = ""
    #: Bounds on an input that is fetched by its URL.
    fetch_timeout_s: Seconds = 60.0
    fetch_max_bytes: Count = 64 * 1024 * 1024

    # gateway, and `genfleet up`
    host: str = "127.0.0.1"
    port: Port = 8088
    #: Who must show a key: everybody (``keys``), nobody (``open``), or, ``auto``, everybody once ``admin_key`` or
    #: ``jwt_jwks_url`` is set, and before that nobody, for which the gateway must listen on the loopback.
    auth: Literal["auto", "keys", "open"] = "auto"
    #: The first key, with which an admin makes the others. At least 32 random characters.
    admin_key: str = ""
    #: How long a browser's session lasts.
    session_s: Seconds = 12 * 3600.0
    #: Whether /metrics needs no key.
    metrics_open: bool = False
    #: Tokens of an identity provider: its keys (https, or a file), what ``iss`` and ``aud`` must be, and which claims
    #: hold the tenant (empty: all are of the tenant ``default``) and the role (empty: all are users).
    jwt_jwks_url: str = ""
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_tenant_claim: str = ""
    jwt_role_claim: str = ""
    #: Further names under which a gateway without keys may be called: ``gpu-box, gpu-box.lan:8088``.
    allowed_hosts: str = ""
    #: Origins whose web pages may call the gateway: ``https://app.example.com``; ``*``: any, without credentials.
    cors_origins: str = ""
    #: Where the command line finds the gateway.
    url: str = "http://127.0.0.1:8088"
    #: The key that the command line shows there.
    key: str = ""
    max_body_bytes: Count = 32 * 1024 * 1024
    max_json_bytes: Count = 1024 * 1024
    #: A request's body must have come within that time.
    body_timeout_s: Seconds = 300.0
    #: Connections of one gateway process; beyond them everything is answered 503.
    max_connections: Count = 20_000
    shutdown_grace_s: Seconds = 5.0
    sse_heartbeat_s: Seconds = 15.0
    #: A model that no pool has ever announced: refuse the job, or queue it until one does.
    unknown_model: Literal["refuse", "queue"] = "refuse"
    default_model: str = ""
    default_priority: Annotated[int, Meta(ge=0, le=9)] = 5
    default_run_timeout_s: Seconds = 3600.0
    default_max_attempts: Count = 3
    max_queued: Count = 100_000
    #: How long a submit may wait for its job's end (``Prefer: wait``).
    max_wait_s: Seconds = 60.0
    #: Of a tenant that has no limits of its own; 0: no limit. A burst of 0 is what comes in a second.
    limit_submits_per_s: Annotated[float, Meta(ge=0)] = 0.0
    limit_burst: Annotated[int, Meta(ge=0)] = 0
    limit_queued: Annotated[int, Meta(ge=0)] = 0
    limit_running: Annotated[int, Meta(ge=0)] = 0
    limit_stored_bytes: Annotated[int, Meta(ge=0)] = 0

    #: Where clients reach the gateway, for the URLs that it gives out; empty: the address that it listens on.
    public_url: str = ""
    #: The APIs of other services that are answered beside the native one.
    dialects: str = "multigpu,wan-api,hidream,animate,turbodiffusion,openai"
    #: The models of jobs that come by them and name none; empty: as ``default_model``.
    multigpu_model: str = ""
    wan_api_model: str = ""
    hidream_model: str = ""
    animate_model: str = ""
    turbodiffusion_model: str = ""
    openai_video_model: str = ""
    openai_image_model: str = ""
    #: Other names of models: ``sora-2=wan-demo, gpt-image-2=wan-demo``.
    model_aliases: str = ""
    #: Folders beneath which clients may name input files by their path: ``/srv/in, acme=/srv/acme``.
    input_folders: str = ""
    #: Whether uploaded pictures and clips are decoded at submit, in a child, to see that they can be.
    check_inputs: bool = True
    #: Asked before a job is accepted and before what it made is kept; empty: nobody is asked.
    moderation_url: str = ""
    #: Sent along as a bearer token.
    moderation_token: str = ""
    moderation_timeout_s: Seconds = 10.0

    #: A webhook that is not taken is sent again for so long; each try waits so long for an answer.
    webhook_retry_s: Annotated[float, Meta(gt=0, le=14 * 86400)] = 3 * 86400.0
    webhook_timeout_s: Annotated[float, Meta(gt=0, le=60)] = 20.0
    #: Networks that webhooks may reach although they are not public: ``10.1.0.0/16, fd00::/8``.
    webhook_networks: str = ""

    # scheduler
    assign_timeout_s: Seconds = 2.0
    #: Seconds of waiting that outweigh one step of priority.
    ageing_s: Seconds = 600.0
    #: A device-second that a tenant used so long ago counts half against it.
    share_half_life_s: Seconds = 3600.0
    #: A job that has waited so long gets its turn by age alone, whatever its tenant's share is.
    overdue_s: Seconds = 3600.0
    #: A job rests so long after its first failed attempt, twice as long after each further one, up to a minute.
    backoff_s: Seconds = 1.0
    #: Attempts that fail in a row until their worker gets no more, and until it is given one on probation.
    quarantine_after: Count = 3
    quarantine_s: Seconds = 60.0
    #: A leader that is silent for so long is replaced by a standby.
    leader_lease_s: Seconds = 3.0
    #: A job's record moves from the queue's bucket to the archive so long after its end.
    archive_after_s: Seconds = 300.0
    #: How long the marker that an archived job leaves in the queue's bucket is kept for followers that are late.
    marker_ttl_s: Annotated[float, Meta(ge=60)] = 900.0
    #: Ended jobs and their files are kept for so many days, and so many of each tenant.
    retain_days: Annotated[float, Meta(gt=0)] = 30.0
    retain_count: Count = 100_000

    #: Where workers that keep files by grants (``artifacts = grants``) reach a gateway; empty: as clients do.
    files_url: str = ""
    #: Of one file that such a worker writes.
    max_output_bytes: Count = 4 * 1024**3

    # worker
    pool: str = ""
    #: What files say of their origin: nothing, all but the prompts, or these too.
    provenance: Literal["off", "parameters", "full"] = "parameters"
    worker: WorkerName | None = None
    lease_s: Seconds = 6.0
    runtime_dir: str = ""
    #: How long a drained worker may go on with its job before it hands the job back.
    drain_grace_s: Annotated[float, Meta(ge=0)] = 600.0

    # checkpoints: `genfleet models`, and workers whose pool says `download = true`
    #: Where `models pull` puts checkpoints; workers look there after the folders of MODEL_CKPT_DIR.
    models_dir: str = "genfleet-data/models"
    #: Which hub they come from.
    models_hub: Literal["huggingface", "modelscope", "modelers"] = "huggingface"
    #: Address of a mirror of that hub; empty: the hub itself.
    models_mirror: str = ""
    #: For repositories that are not public; sent to that address only.
    models_token: str = ""

    # `genfleet up`
    data_dir: str = "genfleet-data"
    workers: Count = 1
    #: Ranks of each worker's group; 0: a power of two, as many as the devices that are found allow.
    group_size: Annotated[int, Meta(ge=0)] = 1
    device: Literal["auto", "cpu", "cuda", "npu"] = "auto"
    devices: str = ""
    model: str = "wan-demo"
    nats_port: Port = 0

    @property
    def base_url(self) -> str:
        """Where clients reach the gateway, without a slash at its end."""
        return self.public_url.rstrip("/")

    @property
    def keyless(self) -> bool:
        """Whether requests need no key."""
        return self.auth == "open" or (self.auth == "auto" and not (self.admin_key or self.jwt_jwks_url))


def load(environ: Mapping[str, str] | None = None, options: Mapping[str, object] | None = None) -> Settings:
    """Settings from the file that ``GENFLEET_CONFIG`` names, if any, the environment, which wins over it, and the
    options of a command line by the fields' names, which win over both.

    Raises:
        SettingsError: an unknown name, a value that is not allowed, or a file that cannot be read; it names it.
    """
    env = os.environ if environ is None else environ
    given = {name.removeprefix(PREFIX).lower(): value for name, value in env.items() if name.startswith(PREFIX)}
    config = given.pop("config", "")
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for name, value in _from_config(config).items() if config else ():
        values[name], sources[name] = value, f"{config}: {name}"
    for name, value in given.items():
        source = PREFIX + name.upper()
        if name not in _TYPES and name.endswith("_file"):
            name = name.removesuffix("_file")
            if name in given:
                raise SettingsError(f"{source}: {PREFIX}{name.upper()} is set too; use one of the two")
            value = _from_file(value, source)
        values[name], sources[name] = value, source
    for name, option in (options or {}).items():
        values[name], sources[name] = option, "--" + name.replace("_", "-")
    return Settings(**{name: _converted(name, value, sources[name]) for name, value in values.items()})


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def to_environ(settings: Settings) -> dict[str, str]:
    """The variables that make ``load`` give these settings, for the environment of a process to be started; what is
    at its default is left out."""
    defaults = Settings()
    return {
        variable(name): str(value)
        for name in Settings.__struct_fields__
        if (value := getattr(settings, name)) != getattr(defaults, name)
    }


def _from_config(path: str) -> dict[str, object]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{PREFIX}CONFIG: cannot read {path}: {error}") from error


def _from_file(path: str, source: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{source}: cannot read {path}: {error}") from error


_TYPES = {field.name: field.type for field in msgspec.structs.fields(Settings)}


def _converted(name: str, value: object, source: str) -> Any:
    if name not in _TYPES:
        raise SettingsError(f"{source}: there is no such setting")
    try:
        return msgspec.convert(value, _TYPES[name], strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{source}: {error}") from error
