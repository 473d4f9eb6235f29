"""PURE: The rules about what the engine of a resource cannot do, made from the engines' limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from disagg_operator.api.expressions import (
    Expression,
    at_most,
    differ,
    divides,
    equal,
    field,
    filled,
    one_of,
    present,
)
from disagg_operator.api.rules import Rule
from disagg_operator.engines import BY_NAME
from disagg_operator.engines.contract import Engine, EngineLimits, TensorRule
from disagg_operator.engines.flags import refusals_of
from disagg_wire.roles import ROLES

_LISTS = ("engine.args", "prefill.args", "decode.args", "model.adapters")
_PREFILL_RANKS = field("prefill.parallelism.tensor")
_DECODE_RANKS = field("decode.parallelism.tensor")
_NOT_EXPERIMENTAL = ~field("engine.experimental")
_MakeRule = Callable[[str, Expression, str], Rule]


def engine_rules() -> tuple[Rule, ...]:
    """Return the rules of `spec` for all engines."""
    return tuple(rule for engine in BY_NAME.values() for rule in _rules(engine))


def argument_problems(engine: Engine, arguments: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Yield the path and the reason of each argument that the operator sets itself.

    `arguments` has the lists of the spec by their paths.
    """
    for path, args in arguments.items():
        for index, reason in refusals_of(args, engine.owned):
            yield f"{path}[{index}]", reason


def _rules(engine: Engine) -> Iterator[Rule]:
    limits, which = engine.limits, f"engine.type {engine.name}"

    def rule(path: str, condition: Expression, message: str) -> Rule:
        other = ~present("engine") | differ(field("engine.type"), engine.name)
        return Rule(message=f"{which} {message}", condition=other | condition, field=path)

    for path, values in limits.values.items():
        allowed, section = one_of(field(path), values), path.partition(".")[0]
        condition = allowed if section == "engine" else ~present(section) | ~present(path) | allowed
        yield rule(path, condition, f"takes only {' or '.join(values)} for {path}")
    for path, advice in limits.absent.items():
        missing = ~filled(path) if path in _LISTS else ~present(path)
        yield rule(path, missing, f"has no {path}" + (f": {advice}" if advice else ""))
    for path in limits.off:
        yield rule(path, ~present(path.partition(".")[0]) | ~present(path) | ~field(path), f"knows no {path}")
    for path, value in limits.cpu_alone:
        for role in ROLES:
            none = ~present(f"{role}.accelerator") | equal(field(f"{role}.accelerator.count"), 0)
            other = ~present(path) | differ(field(path), value)
            yield rule(path, other | none, f"has {path} {value} on CPUs alone, and {role}.accelerator is set")
    for role in ROLES if limits.needs_accelerators else ():
        some = present(f"{role}.accelerator") & differ(field(f"{role}.accelerator.count"), 0)
        yield rule(f"{role}.accelerator", some, f"computes on GPUs alone: set {role}.accelerator")
    yield from _batch_rules(limits, rule)
    yield from _pair_rules(limits, rule)


def _batch_rules(limits: EngineLimits, rule: _MakeRule) -> Iterator[Rule]:
    for role in ROLES:
        path = f"{role}.maxBatchTokens"
        if limits.batch_holds_running:
            holds = at_most(field(f"{role}.maxRunningRequests"), field(path))
            yield rule(path, holds, f"wants {path} to be at least {role}.maxRunningRequests")
        if limits.batch_in_blocks:
            whole = divides(field("engine.blockSizeTokens"), field(path))
            yield rule(path, whole, f"wants {path} to be a multiple of engine.blockSizeTokens")


def _pair_rules(limits: EngineLimits, rule: _MakeRule) -> Iterator[Rule]:
    path, same = "decode.parallelism.tensor", equal(_PREFILL_RANKS, _DECODE_RANKS)
    if limits.tensor is TensorRule.INTEGER_RATIO:
        ratio = divides(_DECODE_RANKS, _PREFILL_RANKS) | divides(_PREFILL_RANKS, _DECODE_RANKS)
        yield rule(path, ratio, f"wants {path} to be a multiple or a divisor of that of prefill")
    elif limits.tensor is not TensorRule.ANY:
        condition = same if limits.tensor is TensorRule.EQUAL else _NOT_EXPERIMENTAL | same
        yield rule(path, condition, f"wants {path} to be that of prefill")
    if limits.experimental_transport is not None:
        transport = equal(field("kvTransfer.transport"), limits.experimental_transport)
        condition = _NOT_EXPERIMENTAL | present("kvTransfer") & transport
        message = f"hands KV over by {limits.experimental_transport} alone: set kvTransfer.transport"
        yield rule("engine.experimental", condition, message)
