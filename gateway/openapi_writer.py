"""The API as an OpenAPI 3.1 document, written from the same structs that decode and encode the bodies.

Litestar would derive one from handler signatures, but loses what matters here: bodies that are decoded by hand, refused
unknown fields, problem+json.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec
from msgspec import Struct

from gateway.problems import MEDIA_TYPE, ProblemDetails

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"
_SAYS = {
    400: "The request cannot be read.",
    401: "Not without a key, or not with this one.",
    403: "Not with this key's role, or not from there.",
    404: "There is no such thing.",
    405: "Not with this method.",
    408: "The body took too long.",
    409: "Not in this state.",
    410: "The job was deleted.",
    413: "The body is too long.",
    415: "The body's type is not taken here.",
    416: "The range lies outside the file.",
    421: "This gateway is not called so.",
    422: "A field has a value that cannot be served; `errors` names it.",
    429: "The queue is full, or the tenant has its limit (`errors` names it); come back after `Retry-After` seconds.",
    500: "The job failed.",
    503: "The gateway has no room for the connection; or the message bus does not answer, and whether the request took "
    "effect is unknown. Try again after `Retry-After`.",
    504: "The job has not ended in time.",
}
TEXT: Json = {"type": "string"}
BINARY: Json = {"type": "string", "format": "binary"}
#: A file whose type says what it is.
FILE = "*/*"
#: What stands before every route may say (``gateway.exposure``), and before those that are not for everybody.
_BEFORE, _NOT_OPEN = (403, 421, 503), (401,)
_RETRY_AFTER: Json = {"Retry-After": {"description": "seconds", "schema": {"type": "string"}}}


class Multipart(Struct, frozen=True, kw_only=True):
    """The multipart body that takes the same fields as the JSON one, with files as parts.

    Attributes:
        files: the fields that are files, or references as in JSON.
        needs: of these, those without which it is nothing; they are files.
        several: fields that may be several files.
        omits: fields that a form has not.
        alone: there is no JSON body beside it.
    """

    files: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    several: tuple[str, ...] = ()
    omits: tuple[str, ...] = ()
    alone: bool = False


class Operation(Struct, frozen=True, kw_only=True):
    """One method of one path.

    Attributes:
        answers: by status, the type of the body (several: one of them), None for no body, or a media type for bytes.
        problems: statuses that are answered with problem+json.
    """

    method: str
    path: str
    name: str
    summary: str
    tag: str
    answers: dict[int, Any]
    problems: tuple[int, ...] = ()
    parameters: tuple[Json, ...] = ()
    body: Json | None = None
    #: The struct of a JSON body, where ``body`` need not say more.
    takes: type[Struct] | None = None
    #: The body may be left out.
    optional: bool = False
    #: The same as a form.
    form: Multipart | None = None
    #: Further structs that ``body`` refers to.
    mentions: tuple[type[Struct], ...] = ()
    #: The struct of errors, where it is not ours.
    refuses: type[Struct] = ProblemDetails
    #: The path's and the query's parameters that are plain text, by name and meaning.
    words: tuple[tuple[str, str], ...] = ()
    #: It makes jobs: takes the headers ``Idempotency-Key`` and ``Prefer``.
    makes_jobs: bool = False
    #: Anybody may, key or not.
    open: bool = False


def file_answers(kind: str) -> dict[int, Any]:
    """The answers of what serves a file of that type: whole, in part, from the store itself, or as it was."""
    return {200: kind, 206: kind, 302: None, 304: None}


class Event(Struct, frozen=True, kw_only=True):
    """What is posted to an address that a client named."""

    name: str
    summary: str
    body: type[Struct]
    #: The headers that come with it, by name and meaning.
    headers: tuple[tuple[str, str], ...] = ()


def ref(kind: type[Struct]) -> Json:
    """A reference to that struct's schema."""
    return {"$ref": _REF.format(name=kind.__name__)}


def query(name: str, kind: Json, description: str) -> Json:
    """A parameter in the query."""
    return {"name": name, "in": "query", "required": False, "schema": kind, "description": description}


def header(name: str, description: str, kind: Json = TEXT) -> Json:
    """A header of the request."""
    return {"name": name, "in": "header", "required": False, "schema": kind, "description": description}


KEY = header(
    "Idempotency-Key",
    "1 to 255 printable ASCII characters. The same key with the same request (files included) gives the same job; "
    "with another request it is refused (422).",
)
PREFER = header(
    "Prefer",
    "`wait=N` (RFC 7240): answer when the job has ended, or after N seconds if that is sooner. `Preference-Applied` "
    "says for how long at most.",
)


def document(version: str, operations: Iterable[Operation], events: tuple[Event, ...] = ()) -> bytes:
    """The document as JSON."""
    found = tuple(operations)
    structs: dict[Any, None] = dict.fromkeys((ProblemDetails, *(event.body for event in events)))
    for operation in found:
        structs |= dict.fromkeys((operation.refuses, *operation.mentions))
        for kinds in (operation.takes, *operation.answers.values()):
            several = kinds if isinstance(kinds, tuple) else (kinds,)
            structs |= dict.fromkeys(kind for kind in several if kind is not None and not isinstance(kind, str))
    components = _components(tuple(structs))
    paths: Json = {}
    for operation in found:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, components)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "genfleet",
                "version": version,
                "description": "One durable queue and one API in front of a fleet of devices that make video and "
                "images. Every error is `application/problem+json` (RFC 9457).",
            },
            "paths": paths,
            **({"webhooks": {event.name: {"post": _posted(event)} for event in events}} if events else {}),
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "key": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "a key, or a provider's token",
                    },
                    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "a key"},
                    "session": {
                        "type": "apiKey",
                        "in": "cookie",
                        "name": "genfleet_session",
                        "description": "begun by `POST /v1/session`; whatever changes something needs the header "
                        "`X-CSRF-Token` too. Over HTTPS its name is `__Host-genfleet`.",
                    },
                },
            },
            # A gateway may ask for none.
            "security": [{"key": []}, {"header": []}, {"session": []}, {}],
        }
    )


# What msgspec finds out about types took half of a gateway's start. They do not change, and what is kept is only read.


@cache
def _components(structs: tuple[Any, ...]) -> Json:
    _, components = msgspec.json.schema_components(structs, ref_template=_REF)
    for component in components.values():
        if "description" in component:
            component["description"] = " ".join(component["description"].replace("``", "`").split())
    return components


@cache
def _shown(kinds: tuple[Any, ...]) -> Json:
    shown, _ = msgspec.json.schema_components(kinds, ref_template=_REF)
    return shown[0] if len(shown) == 1 else {"anyOf": list(shown)}


def _posted(event: Event) -> Json:
    return {
        "summary": event.summary,
        "parameters": [{**header(name, meaning), "required": True} for name, meaning in event.headers],
        "requestBody": {"required": True, "content": {"application/json": {"schema": ref(event.body)}}},
        "responses": {"2XX": {"description": "Taken; nothing of the answer is read."}},
        "security": [{}],
    }


def _described(operation: Operation, components: Json) -> Json:
    responses: Json = {str(status): _done(answer) for status, answer in operation.answers.items()}
    if operation.makes_jobs:
        for said in responses.values():
            said["headers"] = {"Preference-Applied": {"description": "the answer to `Prefer`", "schema": TEXT}}
    before = _BEFORE if operation.open else (*_BEFORE, *_NOT_OPEN)
    for status in sorted({*operation.problems, *before, *_of_keys(operation), *_of_bodies(operation)}):
        kind = MEDIA_TYPE if operation.refuses is ProblemDetails else "application/json"
        responses[str(status)] = {
            "description": _SAYS[status],
            "content": {kind: {"schema": ref(operation.refuses)}},
            **({"headers": _RETRY_AFTER} if status in (429, 503) else {}),
        }
    described: Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": responses,
    }
    parameters = [*operation.parameters, *(_word(operation.path, *word) for word in operation.words)]
    parameters += [KEY, PREFER] if operation.makes_jobs else []
    if parameters:
        described["parameters"] = parameters
    body = operation.body or _body(operation, components)
    if body is not None:
        described["requestBody"] = body
    return described


def _of_keys(operation: Operation) -> tuple[int, ...]:
    return (400,) if operation.makes_jobs else ()


def _of_bodies(operation: Operation) -> tuple[int, ...]:
    """Whoever may send too much may send it too slowly."""
    return (408,) if 413 in operation.problems else ()


def _done(answer: Any) -> Json:
    said: Json = {"description": "Done."}
    if isinstance(answer, str):
        said["content"] = {answer: {"schema": TEXT if answer.startswith("text/") else BINARY}}
        if answer == "application/json":
            said["content"] = {answer: {"schema": {}}}
    elif answer is not None:
        schema = _shown(answer if isinstance(answer, tuple) else (answer,))
        said["content"] = {"application/json": {"schema": schema}}
    return said


def _body(operation: Operation, components: Json) -> Json | None:
    if operation.takes is None:
        return None
    content: Json = {"application/json": {"schema": ref(operation.takes)}}
    if operation.form is not None:
        form = {"multipart/form-data": {"schema": _form(operation.form, components[operation.takes.__name__])}}
        content = form if operation.form.alone else content | form
    return {"required": not operation.optional, "content": content}


def _form(form: Multipart, base: Json) -> Json:
    """The same fields as multipart."""
    properties = {name: kind for name, kind in base["properties"].items() if name not in form.omits}
    for name in form.files:
        properties[name] = BINARY if name in form.needs else {"anyOf": [BINARY, TEXT]}
        properties[name] = {**properties[name], "description": "a file, or a reference as in JSON"}
        if name not in base["properties"]:
            properties[name] = {**BINARY, "description": "a file"}
    for name in form.several:
        properties[name] = {
            "anyOf": [{"type": "array", "items": BINARY}, TEXT],
            "description": "files, each a part of this name; or a list as in JSON",
        }
    required = [*base.get("required", ()), *(name for name in form.needs if name not in base.get("required", ()))]
    return {**base, "properties": properties, "required": required}


def _word(path: str, name: str, description: str) -> Json:
    inside = "{" + name + "}" in path
    place = "path" if inside else "query"
    return {"name": name, "in": place, "required": inside, "schema": TEXT, "description": description}
