"""PURE: The bundled worker, which speaks the token protocol itself."""

from __future__ import annotations

from disagg_operator.engines.contract import Engine, EngineLimits
from disagg_wire.engines import BUILTIN

_NO_COMMAND_LINE = "the bundled worker is set by the fields of the spec"
ENGINE = Engine(
    name=BUILTIN,
    limits=EngineLimits(
        absent={
            "engine.args": _NO_COMMAND_LINE,
            "prefill.args": _NO_COMMAND_LINE,
            "decode.args": _NO_COMMAND_LINE,
            "engine.leaseSeconds": "its tickets have a lifetime of their own",
            "model.adapters": "",
        },
        cpu_alone=(("engine.numerics", "Exact"),),
        off=("engine.experimental",),
    ),
)
