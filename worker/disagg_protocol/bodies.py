"""PURE: The bodies of the worker's internal calls, checked field by field, and its events as JSON.

docs/protocol.md describes the fields.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from disagg_protocol.events import EndEvent, ErrorEvent, Event, TokenEvent
from disagg_protocol.sampling_params import SamplingParams, Structured
from disagg_wire import grammar_cost, spent_time
from disagg_wire.protocol import MAX_CHOICES, MAX_GRAMMAR_CHARS, MAX_TOKENS, MIN_REPETITION_PENALTY
from disagg_wire.roles import Role
from disagg_wire.room import Room

Line = dict[str, Any]
# The types of the line that ends a stream.
ENDS = ("end", "error")
ShortText = Annotated[str, Field(max_length=64)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
StreamName = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TokenList = Annotated[list[TokenId], Field(fail_fast=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class StructuredOutput(_Strict):
    """The field `sampling.structured`: a format that the output must match."""

    kind: Literal["json_schema", "regex", "grammar", "choice"]
    value: str = Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)

    @model_validator(mode="after")
    def _choices(self) -> StructuredOutput:
        if self.kind == "choice":
            try:
                choices = json.loads(self.value)
            except RecursionError:
                raise ValueError("is nested too deeply") from None
            if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
                raise ValueError("must be a JSON list of strings that are not empty")
        if complex_because := grammar_cost.problem(self.kind, self.value):
            raise ValueError(f"is too complex: {complex_because}")
        return self


class Sampling(_Strict):
    """The field `sampling`: the parameters of sampling (`SamplingParams`)."""

    seed: int = Field(ge=0, lt=1 << 64)
    max_new_tokens: int = Field(ge=1, le=MAX_TOKENS)
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=MAX_TOKENS)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=MIN_REPETITION_PENALTY, le=100)
    logit_bias: list[tuple[TokenId, Annotated[float, Field(ge=-100, le=100)]]] = Field(
        default=[], max_length=1024, strict=False
    )
    logprobs: int | None = Field(None, ge=0, le=20)
    stop_token_ids: TokenList = Field(default=[], max_length=256)
    min_tokens: int = Field(0, ge=0, le=MAX_TOKENS)
    structured: StructuredOutput | None = None

    def to_params(self) -> SamplingParams:
        values = self.model_dump()
        values["structured"] = (
            None if self.structured is None else Structured(self.structured.kind, self.structured.value)
        )
        values["logit_bias"] = tuple((int(t), float(b)) for t, b in self.logit_bias)
        values["stop_token_ids"] = tuple(self.stop_token_ids)
        return SamplingParams(**values)


class ResumeBody(_Strict):
    """The field `resume`: under what name the stream is kept, so that any router can ask for it."""

    name: StreamName
    """A name that only a router can know: of one client, its request and the choice."""
    body: StreamName
    """What two requests have in common that ask for the same."""
    run: str = Field(min_length=1, max_length=64, pattern=r"^[0-9a-f]+$")
    """The answer that it is a part of; the same for all of its choices and attempts."""
    began_ms: int = Field(ge=0, lt=1 << 53)
    """When the answer was begun, by the clock of its router."""
    cached_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    """The tokens of the prompt that the first attempt found in its cache, once that is known."""


class _WorkRequest(_Strict):
    request_id: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:-]+$")
    epoch: int = Field(ge=0, le=1 << 20)
    """The number of the router's attempt."""
    tokens: TokenList = Field(min_length=1, max_length=MAX_TOKENS)
    """The prompt and the tokens emitted so far."""
    prompt_tokens: int = Field(ge=1)
    """The number of tokens of the prompt."""
    sampling: Sampling
    tenant: str = Field("", max_length=128)
    adapter: str | None = Field(None, min_length=1, max_length=256)
    """The LoRA adapter, only for workers with the feature of that name."""
    digest: str | None = Field(None, min_length=1, max_length=256)
    """The digest of the weights that it is for, only for workers with the feature of that name."""
    deadline_s: float = Field(gt=0, le=86400)
    """The seconds after which the request is broken off."""
    resume: ResumeBody | None = None
    """How its stream is kept, only for workers with the feature of that name."""
    first_token_within_s: float | None = Field(None, ge=-86400, le=86400)
    """The seconds from now to the time by which the first token should be out."""

    def due_s(self, now_s: float) -> float | None:
        """Return the time by which the first token should be out, on the clock of `now_s`, the time
        at which the request came.
        """
        return None if self.first_token_within_s is None else now_s + self.first_token_within_s


class DecodeRequest(_WorkRequest):
    mode: Literal["remote", "local"]
    prefill_incarnation: str | None = Field(None, min_length=1, max_length=256)
    """The prefill worker that alone may use the ticket, only for workers with the feature of that
    name.
    """
    local_up_to_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    """The most tokens of the prompt that may be prefilled here, if the KV of all before them is
    here already; only for workers with the feature of that name.
    """
    prefill_transports: dict[ShortText, ShortText] | None = Field(None, max_length=16)
    """What `kv.transports` of this worker is, only for workers with the feature of that name."""


class RoomBody(_Strict):
    """The field `decode_room`, and the body of the call that tells the room of decode."""

    free_tokens: int = Field(ge=0, lt=1 << 53)
    """The tokens of the KV cache that are promised to nobody."""
    total_tokens: int = Field(ge=0, lt=1 << 53)
    """The tokens of the whole KV cache."""
    free_seats: int = Field(ge=0, lt=1 << 53)
    """The sequences that can still be decoded."""
    total_seats: int = Field(ge=0, lt=1 << 53)
    """The sequences that can be decoded together."""
    step_s: float = Field(ge=0, le=86400)
    """The recent duration of a decode step in seconds; 0 if there was none."""

    def to_room(self) -> Room:
        return Room(**self.model_dump())


class PrefillRequest(_WorkRequest):
    ticket: dict[str, Any] | None
    decode_room: RoomBody | None = None


class RoleRequest(_Strict):
    """The body of a request to change the role."""

    role: Role
    deadline_s: float = Field(60.0, ge=0, le=86400)


class DrainRequest(_Strict):
    """The body of a notice to leave; with a lease of 0 the worker is called back."""

    lease_s: float = Field(30.0, ge=0, le=86400)


class StreamsRequest(_Strict):
    """The body of the question what is kept under some names."""

    names: list[StreamName] = Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)


WorkT = TypeVar("WorkT", DecodeRequest, PrefillRequest)
AnyT = TypeVar("AnyT", bound=_Strict)


class BadRequest(ValueError):
    """Raised when a body is invalid; the message names the field."""


class PromptTooLong(BadRequest):
    """Raised when a prompt is too long for any worker of this model."""


def _valid(kind: type[AnyT], body: bytes) -> AnyT:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRequest(f"{'.'.join(str(p) for p in first['loc']) or 'body'}: {first['msg']}") from None


def parse_role(body: bytes) -> RoleRequest:
    """Parse a request to change the role. Raises BadRequest."""
    return _valid(RoleRequest, body)


def parse_drain(body: bytes) -> DrainRequest:
    """Parse a notice to leave. Raises BadRequest."""
    return _valid(DrainRequest, body)


def parse_room(body: bytes) -> RoomBody:
    """Parse the room of decode. Raises BadRequest."""
    return _valid(RoomBody, body)


def parse_streams(body: bytes) -> StreamsRequest:
    """Parse the question what is kept under some names. Raises BadRequest."""
    return _valid(StreamsRequest, body)


def parse(kind: type[WorkT], body: bytes) -> WorkT:
    """Parse a request to prefill or decode. Raises BadRequest."""
    request = _valid(kind, body)
    if request.prompt_tokens > len(request.tokens):
        raise BadRequest(f"prompt_tokens: {request.prompt_tokens} of {len(request.tokens)} tokens")
    if request.sampling.max_new_tokens <= len(request.tokens) - request.prompt_tokens:
        raise BadRequest("sampling.max_new_tokens: that many tokens were emitted already")
    if isinstance(request, DecodeRequest) and request.mode == "remote" and request.first_token_within_s is not None:
        raise BadRequest("first_token_within_s: only with mode local; with mode remote prefill makes the first token")
    if isinstance(request, DecodeRequest) and request.mode == "local" and request.prefill_incarnation is not None:
        raise BadRequest("prefill_incarnation: only with mode remote; with mode local nobody sends KV")
    if isinstance(request, DecodeRequest) and request.mode == "local" and request.local_up_to_tokens is not None:
        raise BadRequest("local_up_to_tokens: only with mode remote; with mode local all is prefilled here")
    if isinstance(request, DecodeRequest) and request.prefill_transports and request.prefill_incarnation is None:
        raise BadRequest("prefill_transports: only with prefill_incarnation")
    return request


def event_json(event: Event) -> Line:
    """Return an event as a line of the stream."""
    if isinstance(event, TokenEvent):
        line: Line = {"type": "token", "index": event.index, "token": event.token}
        if event.logprob is not None:
            line |= {"logprob": event.logprob, "top_logprobs": [list(pair) for pair in event.top_logprobs]}
        if event.cached_tokens is not None:
            line["cached_tokens"] = event.cached_tokens
        if event.spent is not None:
            line[spent_time.FIELD] = event.spent.to_json()
        return line
    if isinstance(event, EndEvent):
        return {"type": "end", "finish_reason": event.finish_reason}
    return error_json(event)


def error_json(event: ErrorEvent) -> Line:
    return {"type": "error", "code": event.code, "message": event.message, "retryable": event.retryable}


# Made once, since `json.dumps` would make one for each line.
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Lines(NamedTuple):
    """Lines that go out together, as bytes."""

    content: bytes
    end: bool
    """Whether the last of them ends the stream."""


def encode_line(content: Line) -> bytes:
    return (_encode(content) + "\n").encode()


def encode_token(index: int, token: int) -> bytes:
    """Return the line of a TokenEvent with nothing but these two.

    Nearly all lines are like this one, and an encoder takes ten times as long for it.
    """
    return b'{"type":"token","index":%d,"token":%d}\n' % (index, token)


def encoded(line: Line) -> Lines:
    """Return a line that goes out alone."""
    return Lines(encode_line(line), line["type"] in ENDS)
