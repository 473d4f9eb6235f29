"""PURE: The models of spec.model and spec.engine: the served model, and its inference engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from disagg_operator.api.base import ByteQuantity, Model, SecretRef, list_map
from disagg_operator.api.expressions import contains, field, matches, one_of, present, starts_with
from disagg_operator.api.reserved import reserved_environment
from disagg_operator.api.rules import Rule

_HF = r"hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+"
_PVC = r"pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9._/-]*)?"
_FILE = r"file:///[A-Za-z0-9._/-]+"


class ModelSpec(Model):
    """The model that both pools serve."""

    rules = (
        Rule(
            message="uri must be hf://org/name, pvc://claim/path or file:///path",
            condition=matches("uri", f"^({_HF}|{_PVC}|{_FILE})$"),
            field="uri",
        ),
        Rule(message="uri must not contain ..", condition=~contains("uri", "/[.][.](/|$)"), field="uri"),
        Rule(
            message="revision is for hf:// models only",
            condition=~present("revision") | starts_with("uri", "hf://"),
            field="revision",
        ),
        Rule(
            message="authSecretRef is for hf:// models only",
            condition=~present("authSecretRef") | starts_with("uri", "hf://"),
            field="authSecretRef",
        ),
    )
    uri: str = Field(
        min_length=6,
        max_length=1024,
        description="Where the checkpoint is: hf://org/name, pvc://claim/path or file:///path in the image. "
        "Safetensors, Llama family.",
    )
    name: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="The name that clients ask for. Default: the last part of the uri.",
    )
    revision: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        pattern=r"^[A-Za-z0-9._/-]+$",
        description="Branch, tag or commit of an hf:// model.",
    )
    auth_secret_ref: SecretRef | None = Field(None, description="Token for hf:// models that need one.")

    @property
    def served_name(self) -> str:
        """The name that clients ask for."""
        return self.name or self.uri.rstrip("/").rsplit("/", 1)[-1]


class EnvVar(Model):
    """An environment variable of the workers."""

    rules = (
        Rule(
            message="this variable is set by the operator; use the field of the spec",
            condition=~one_of(field("name"), reserved_environment()),
            field="name",
        ),
    )
    name: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the variable.",
    )
    value: str = Field("", max_length=4096, description="Its value.")


class PrefixCaching(Model):
    """Reuse of the KV of prompts that begin alike; never between requests of different API keys."""

    enabled: bool = Field(True, description="Keep the KV of finished requests until its blocks are needed.")
    eviction: Literal["lru", "fifo"] = Field(
        "lru",
        description="Which unused block goes first: least recently used, or oldest.",
    )
    host_memory: ByteQuantity | None = Field(
        None,
        description="Host memory per worker for evicted blocks. Default: none.",
    )


class EngineSpec(Model):
    """The inference engine of both pools."""

    type: Literal["builtin"] = Field(
        "builtin",
        description="builtin: the bundled torch worker, the only engine of this version.",
    )
    image: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="Worker image. Default: the operator's own release.",
    )
    env: list[EnvVar] = Field(
        [],
        max_length=64,
        description="Further environment of the workers, by name.",
        json_schema_extra=list_map("name"),
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Type of weights and KV cache; auto: the checkpoint's.",
    )
    quantization: Literal["none", "int8", "int4", "fp8"] = Field(
        "none",
        description="Weights are rounded to this at load (a checkpoint that is quantised stays as it is); fp8 wants "
        "a GPU.",
    )
    prefix_caching: PrefixCaching = Field(PrefixCaching(), description="Reuse of KV between requests.")
    max_model_len: int | None = Field(
        None,
        ge=16,
        le=16_777_216,
        description="Longest prompt plus output, in tokens. Default: what the model was trained for.",
    )
    block_size_tokens: int = Field(16, ge=1, le=256, description="Tokens of one KV cache block.")
    threads: int = Field(1, ge=1, le=256, description="CPU threads of one worker.")
