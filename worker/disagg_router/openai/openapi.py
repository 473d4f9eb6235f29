"""PURE: The router's API as an OpenAPI 3.1 document, made of the models that check requests.

What the document says of a body is what `schema.parse` accepts, except that there an integer is
written without a fraction. Further limits are those of the model that is asked for.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from disagg_router.openai import schema

Json = dict[str, Any]
OPENAPI_PATH = "/openapi.json"
_REF = "#/components/schemas/{model}"
_ANSWERS = {
    "400": "The request is wrong; `error.param` names the field.",
    "401": "The API key is missing or wrong.",
    "404": "The model does not exist.",
    "408": "The body did not come in time.",
    "409": "The answer with this `x-request-id` is that of another request.",
    "410": "The rest of the answer cannot be had any more; send the request again without `Last-Event-ID`.",
    "413": "The body is too large.",
    "429": "Too many requests are waiting, or the API key is over a limit; try again after the time in Retry-After.",
    "503": "No worker can take the request now; try again after the time in Retry-After.",
    "504": "The request was not finished in time.",
}
# Fields that are known and not supported: they are accepted where they ask for nothing.
_NOTHING: Json = {"enum": [None, [], {"type": "text"}], "description": "Is not supported, but may ask for nothing."}


def _plain(node: Any) -> Any:
    """Return a schema of pydantic's without titles and defaults of null, and with bounds for keys
    where it leaves them out.
    """
    if isinstance(node, list):
        return [_plain(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    kept = {k: v for k, v in node.items() if not (k == "title" and isinstance(v, str)) and (k, v) != ("default", None)}
    if "patternProperties" in kept:
        kept.setdefault("additionalProperties", False)
    return {k: _plain(v) for k, v in kept.items()}


def _bodies() -> Json:
    """Return the schemas of the bodies, by the names of their models."""
    kinds: list[tuple[type[BaseModel], Any]] = [
        (kind, "validation") for kind in (schema.ChatRequest, schema.CompletionRequest)
    ]
    _, made = models_json_schema(kinds, ref_template=_REF)
    found: Json = _plain(made["$defs"])
    for kind, _ in kinds:
        found[kind.__name__]["properties"] |= dict.fromkeys(sorted(schema.UNSUPPORTED), _NOTHING)
    return found


def _error_schema() -> Json:
    text = {"type": ["string", "null"]}
    fields = {"message": {"type": "string"}, "type": {"type": "string"}, "param": text, "code": text}
    error = {"type": "object", "properties": fields, "required": sorted(fields), "additionalProperties": False}
    return {"type": "object", "properties": {"error": error}, "required": ["error"], "additionalProperties": False}


def _answers(content: Json, statuses: tuple[str, ...]) -> Json:
    refused = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    found: Json = {"200": {"description": "The answer.", "content": content}}
    for status in statuses:
        found[status] = {"description": _ANSWERS[status], "content": refused}
        if status in ("429", "503"):
            found[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "required": True}}
    return found


def _post(summary: str, kind: type[BaseModel]) -> Json:
    answer = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
    return {
        "post": {
            "summary": summary,
            "operationId": kind.__name__.removesuffix("Request").lower(),
            "parameters": [
                {
                    "name": "x-request-id",
                    "in": "header",
                    "required": False,
                    "schema": {"type": "string"},
                    "description": "The name of the request. A stream with one can be resumed.",
                },
                {
                    "name": "Last-Event-ID",
                    "in": "header",
                    "required": False,
                    "schema": {"type": "string"},
                    "description": "Asks for the rest of the stream with this `x-request-id`: the id of the last event"
                    " that has come, or the number of events.",
                },
            ],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": _REF.format(model=kind.__name__)}}},
            },
            "responses": _answers(answer, tuple(_ANSWERS)),
        }
    }


def _get(summary: str, name: str, statuses: tuple[str, ...], parameters: list[Json] | None = None) -> Json:
    answer = {"application/json": {"schema": {"type": "object"}}}
    operation = {"summary": summary, "operationId": name, "responses": _answers(answer, statuses)}
    return {"get": operation | ({"parameters": parameters} if parameters else {})}


def document(version: str, *, keys: bool) -> Json:
    """Return the document; `keys` says whether an API key is required."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    key = {"type": "http", "scheme": "bearer", "description": "An API key."}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "disagg",
            "version": version,
            "description": "The part of OpenAI's API that a disagg router serves. An integer is written without a"
            " fraction. Further limits depend on the model: its context and its vocabulary.",
        },
        "paths": {
            "/v1/chat/completions": _post("Continue a chat.", schema.ChatRequest),
            "/v1/completions": _post("Continue a text.", schema.CompletionRequest),
            "/v1/models": _get("List the models.", "models", ("401",)),
            "/v1/models/{name}": _get("Describe a model.", "model", ("401", "404"), [name]),
        },
        "components": {
            "schemas": _bodies() | {"Error": _error_schema()},
            **({"securitySchemes": {"key": key}} if keys else {}),
        },
        **({"security": [{"key": []}]} if keys else {}),
    }
