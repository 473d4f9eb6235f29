"""PURE: The OpenAI requests that the router understands, checked field by field.

A field that is not understood is refused by name and never ignored.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from disagg_router.errors import ApiError
from disagg_wire import grammar_cost
from disagg_wire.protocol import MAX_GRAMMAR_CHARS, MAX_TOKENS, MIN_REPETITION_PENALTY

MAX_N = 16
MAX_PROMPTS = 16
MAX_LOGPROBS = 20
# Fields of OpenAI's API that change the answer and that this server does not support.
UNSUPPORTED = {
    "tools", "tool_choice", "functions", "function_call", "modalities", "audio", "prediction", "suffix", "best_of",
    "web_search_options", "reasoning_effort", "verbosity",
}  # fmt: skip
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenList = Annotated[list[TokenId], Field(max_length=MAX_TOKENS, fail_fast=True)]
Few = Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
StopString = Annotated[str, Field(min_length=1, max_length=256)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(_Strict):
    """The `response_format.json_schema` of OpenAI's API. The output always follows it, as with
    `strict`.
    """

    name: str = Field("", max_length=256)
    description: str | None = Field(None, max_length=4096)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "properties": {"type": {"const": "json_schema"}, "json_schema": {"type": "object"}},
                    "required": ["json_schema"],
                },
                {"properties": {"type": {"enum": ["text", "json_object"]}, "json_schema": {"type": "null"}}},
            ]
        }
    )

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_needed(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema must be given with type json_schema, and only then")
        return self


class StructuredOutputs(_Strict):
    """The `structured_outputs` of vLLM: exactly one of the fields is given."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"properties": {name: {"not": {"type": "null"}}}, "required": [name]}
                for name in ("json", "regex", "choice", "grammar")
            ]
        }
    )

    json_: dict[str, Any] | None = Field(None, alias="json")
    regex: str | None = Field(None, min_length=1)
    choice: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None, min_length=1, max_length=1024, fail_fast=True
    )
    grammar: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if sum(v is not None for v in (self.json_, self.regex, self.choice, self.grammar)) != 1:
            raise ValueError("exactly one of json, regex, choice and grammar must be given")
        return self


class _Common(_Strict):
    """The fields that chat and plain completions share.

    Their bounds make sure that no number can cost more than a refusal. Units and meanings are those
    of OpenAI's API. Fields that it does not have (`top_k`, `min_p`, `repetition_penalty`,
    `ignore_eos`, `min_tokens`, `structured_outputs`, `cache_salt`) are those of vLLM.
    """

    model: str = Field(min_length=1, max_length=256)
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKENS)
    min_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_N)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: (
        Annotated[str, Field(max_length=256)] | Annotated[list[StopString], Field(max_length=16, fail_fast=True)] | None
    ) = None
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=MIN_REPETITION_PENALTY, le=10)
    logit_bias: dict[TokenKey, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    cache_salt: str | None = Field(None, min_length=1, max_length=1024)
    user: str | None = Field(None, max_length=1024)
    metadata: dict[str, str] | None = Field(None, max_length=64)
    store: bool | None = None
    service_tier: str | None = Field(None, max_length=64)
    safety_identifier: str | None = Field(None, max_length=1024)
    prompt_cache_key: str | None = Field(None, max_length=1024)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def structured(self) -> tuple[str, str, str] | None:
        """(field, kind, value) of the structure that is asked for, or None.

        `field` is the field of the request; kind and value are those of `sampling.structured` in
        docs/protocol.md. Raises ApiError.
        """
        found: list[tuple[str, str, str]] = []
        if (form := self.response_format) is not None and form.type != "text":
            schema = form.json_schema.schema_ if form.json_schema is not None else {"type": "object"}
            found.append(("response_format", "json_schema", _dumps(schema)))
        if (wanted := self.structured_outputs) is not None:
            if wanted.json_ is not None:
                found.append(("structured_outputs", "json_schema", _dumps(wanted.json_)))
            elif wanted.choice is not None:
                found.append(("structured_outputs", "choice", json.dumps(wanted.choice)))
            elif wanted.regex is not None:
                found.append(("structured_outputs", "regex", wanted.regex))
            else:
                found.append(("structured_outputs", "grammar", wanted.grammar or ""))
        if not found:
            return None
        field, _, value = found[0]
        if len(found) > 1:
            raise ApiError(
                400,
                "structured_outputs: response_format asks for a form already",
                code="invalid_value",
                param=found[1][0],
            )
        if len(value) > MAX_GRAMMAR_CHARS:
            raise ApiError(400, f"{field}: over {MAX_GRAMMAR_CHARS} characters", code="invalid_value", param=field)
        if complex_because := grammar_cost.problem(found[0][1], value):
            message = f"{field}: too complex: {complex_because}"
            raise ApiError(400, message, code="invalid_value", param=field)
        for other in ("min_tokens", "ignore_eos"):
            if getattr(self, other):
                raise ApiError(
                    400,
                    f"{other}: does not go with {field}, which says when the output ends",
                    code="invalid_value",
                    param=other,
                )
        return found[0]

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def default_tokens(self) -> int | None:
        """The number of tokens if the client names none; None for as many as the context holds."""
        return None


def _dumps(schema: dict[str, Any]) -> str:
    try:
        return json.dumps(schema)
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_body") from None


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=4096, fail_fast=True)]
    name: str | None = Field(None, max_length=256)

    def plain(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": self.role, "content": content}


class ChatRequest(_Common):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=4096, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Common):
    """The body of POST /v1/completions."""

    prompt: (
        str | Annotated[TokenList, Field(min_length=1)] | Annotated[list[str], Few] | Annotated[list[TokenList], Few]
    ) = Field(union_mode="smart")
    echo: Literal[False] | None = None
    logprobs: int | None = Field(None, ge=0, le=5)

    @field_validator("echo", mode="before")
    @classmethod
    def _no_number(cls, value: object) -> object:
        # A literal also takes what is equal to it.
        if value is not None and not isinstance(value, bool):
            raise ValueError("must be false")
        return value

    @property
    def default_tokens(self) -> int | None:
        return 16

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """Return one entry for each prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        tokens = [p for p in self.prompt if isinstance(p, int)]
        return [tokens] if tokens else [p for p in self.prompt if not isinstance(p, int)]


_MODELS = (
    ChatRequest,
    CompletionRequest,
    Message,
    TextPart,
    StreamOptions,
    ResponseFormat,
    JsonSchema,
    StructuredOutputs,
)
_FIELDS = {"schema", "json"} | {name for model in _MODELS for name in model.model_fields}


def _refusal(error: ValidationError) -> ApiError:
    """Return the refusal for the first error, with the name that the client knows.

    Where several forms are allowed, the error's location also contains the form that pydantic
    tried.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    if not first["loc"]:
        # A field name that is not valid Unicode cannot be shown.
        return ApiError(400, f"the body: {first['msg']}", code="invalid_body")
    *parents, last = first["loc"]
    if first["type"] == "extra_forbidden":
        param = _path([*(p for p in parents if isinstance(p, int) or p in _FIELDS), last])
        return ApiError(400, f"{param}: unknown field", code="unknown_parameter", param=param)
    known = [p for p in first["loc"] if isinstance(p, int) or p in _FIELDS]
    param = _path(known)
    message = first["msg"] if len(known) == len(first["loc"]) else "has the wrong type, or a value out of bounds"
    return ApiError(400, f"{param}: {message}", code="invalid_value", param=param)


def _path(loc: list[int | str]) -> str:
    return ".".join(map(str, loc))[:128]


RequestT = TypeVar("RequestT", ChatRequest, CompletionRequest)


def parse(kind: type[RequestT], content: Any) -> RequestT:
    """Return the parsed request. Raises ApiError 400 that names the field."""
    if not isinstance(content, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_body")
    for name in content:
        if name in UNSUPPORTED and content[name] not in (None, [], {"type": "text"}):
            raise ApiError(
                400, f"{name}: is not supported by this server", code="unsupported_parameter", param=str(name)[:64]
            )
    content = {k: v for k, v in content.items() if k not in UNSUPPORTED}
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _refusal(error) from None
