"""Tests of the search for arguments that contradict those of the operator."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.engines import BY_NAME
from disagg_operator.engines.flags import refusals_of

OWNED = {"--port": "", "--dtype": "engine.dtype", "--enable-lora": "", "--ssl-*": "", "-tp": "", "-q": ""}
ALL = [(engine.name, option) for engine in BY_NAME.values() for option in engine.owned]


def refused(*args: str) -> list[int]:
    return [index for index, _ in refusals_of(args, OWNED)]


@pytest.mark.parametrize(
    "argument",
    [
        "--port", "--port=1", "--por", "--p=1", "--dtype.x=1", "--enable_lora", "--no-enable-lora", "--no_enable_lo",
        "--ssl-keyfile", "--ssl_certfile=/x", "--ssl", "-tp", "-t=2", "-q", "-qfp8", "-q=fp8", "--", "---", "-",
        "--seed 1", "-x y=1",
    ],
)  # fmt: skip
def test_an_owned_argument_is_refused_in_every_spelling(argument: str) -> None:
    assert refused("--seed", "1", argument) == [2]


@pytest.mark.parametrize(
    "args",
    [
        ("--seed", "1"), ("--bias", "-1.5", "-.5", "-2"), ("--portable",), ("--x=--port",), ("-O3",), ("--text", "a b"),
        ("--json={\"a b\": 1}",), ("--no-cache",),
    ],
)  # fmt: skip
def test_other_arguments_are_free(args: tuple[str, ...]) -> None:
    assert refused(*args) == []


def test_the_first_word_must_be_an_option_because_the_model_stands_before_it() -> None:
    assert list(refusals_of(["other-model"], OWNED)) == [(0, "other-model must begin with an option")]


def test_no_word_has_a_nul() -> None:
    """The container would not start, and only the kubelet would know why."""
    assert refused("--seed", "a\0b") == [1]


def test_the_reason_names_the_argument_and_the_field_to_use() -> None:
    assert [reason for _, reason in refusals_of(["--dty=x", "--port", "1"], OWNED)] == [
        "--dty: --dtype is set by the operator; use engine.dtype",
        "--port: --port is set by the operator",
    ]
    ((_, reason),) = refusals_of([f"--{'x' * 100} y"], OWNED)
    assert reason.startswith(f"--{'x' * 59}... is no option")


@pytest.mark.parametrize(
    ("engine", "argument"),
    [
        ("vllm", "--grpc-port=9"), ("sglang", "--grpc-port"), ("sglang", "--grpc-mode"), ("sglang", "--smg-grpc-mode"),
        ("sglang", "--smg-http-sidecar-port"), ("sglang", "--gated-launch-port"), ("sglang", "--attn-dp-size"),
        ("sglang", "--attention-data-parallel-size"), ("sglang", "--enable-dp-attention"),
    ],
)  # fmt: skip
def test_no_argument_opens_another_server_or_puts_several_engines_behind_one_adapter(
    engine: str, argument: str
) -> None:
    assert [index for index, _ in refusals_of([argument, "1"], BY_NAME[engine].owned)] == [0]


@given(st.sampled_from(ALL), st.data())
def test_no_spelling_of_an_owned_argument_gets_through(case: tuple[str, str], data: st.DataObject) -> None:
    """Every beginning of an option counts, because argparse takes those that mean only one."""
    name, option = case
    option = option.removesuffix("*")
    if option.startswith("--"):
        plain = option[: data.draw(st.integers(3, len(option)))]
        plain = data.draw(st.sampled_from([plain, plain.replace("--", "--no-", 1)]))
        plain = "--" + "".join(data.draw(st.sampled_from("-_")) if c == "-" else c for c in plain[2:])
    else:
        plain = option
    written = plain + data.draw(st.sampled_from(["", "=1", "=a b"]))
    assert [i for i, _ in refusals_of(["--seed", "1", written, "1"], BY_NAME[name].owned)] == [2]


@given(st.sampled_from(sorted(o for o in OWNED if not o.endswith("*"))), st.data())
def test_what_argparse_takes_for_an_owned_option_is_refused(option: str, data: st.DataObject) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument(option, dest="owned")
    written = option[: data.draw(st.integers(2, len(option)))] + data.draw(st.sampled_from(["", "=1", "1"]))
    try:
        found, rest = parser.parse_known_args([written, "1"])
    except argparse.ArgumentError:
        return
    if found.owned is not None and "--" not in rest:
        assert 0 in refused(written, "1")


@pytest.mark.parametrize("name", BY_NAME)
def test_the_operators_own_arguments_are_all_owned(name: str) -> None:
    """Else a user could say the same flag again, and the last one counts."""
    from tests.operator.engines.pools import pool

    engine = BY_NAME[name]
    if engine.process is None:
        return
    full = pool(
        revision="v1", quantization="fp8", max_model_len=4096, kv_cache_bytes=1 << 30, prefix_cache=False,
        experimental=True, loras=(("a", "/a"),),
    )  # fmt: skip
    # How many adapters are on the GPU at a time is for the user to change.
    free = {"--max-loras", "--max-loras-per-batch"}
    for facts in (full, pool(), pool(role="decode")):
        flags = [word for word in engine.process(facts).command if word.startswith("--") and word not in free]
        assert [i for i, _ in refusals_of(flags, engine.owned)] == [*range(len(flags))]
