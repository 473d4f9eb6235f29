"""Tests of what the last lines of a log say about the end of a container."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.status.last_words import MAX_LINE_CHARS, MAX_TAIL_CHARS, Cause, cause_of, cleaned


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("OSError: [Errno 98] Address already in use", "PortInUse"),
        ("ERROR: [Errno 98] error while attempting to bind on ('::', 8100): address already in use", "PortInUse"),
        ("zmq.error.ZMQError: Address already in use (addr='tcp://10.0.0.7:5600')", "PortInUse"),
        ("vllm: error: unrecognized arguments: --no-such-flag", "UnknownFlag"),
        ("launch_server.py: error: argument --dtype: invalid choice: 'x' (choose from 'auto')", "UnknownFlag"),
        ("vllm serve: error: argument --port: expected one argument", "UnknownFlag"),
        ("ValueError: Unsupported connector type: NixlConnector", "ConnectorMissing"),
        ("ModuleNotFoundError: No module named 'vllm.distributed.nixl_connector'", "ConnectorMissing"),
        ("ImportError: cannot import name 'NixlConnector' from 'vllm'", "ConnectorMissing"),
        ("RuntimeError: NIXL is not available", "MissingLibrary"),
        ("ModuleNotFoundError: No module named 'nixl'", "MissingLibrary"),
        ("ImportError: libucp.so.0: cannot open shared object file: No such file or directory", "MissingLibrary"),
        ("ImportError: /usr/lib/libnixl.so: undefined symbol: ucp_ep_create", "MissingLibrary"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "EngineOutOfMemory"),
        ("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", "EngineOutOfMemory"),
        (
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
            "EngineOutOfMemory",
        ),
        ("OSError: [Errno 12] Cannot allocate memory", "EngineOutOfMemory"),
        ("MemoryError", "EngineOutOfMemory"),
        ("RuntimeError: No CUDA GPUs are available", "NoAccelerator"),
        ("RuntimeError: Failed to infer device type", "NoAccelerator"),
        ("RuntimeError: Cannot find any model weights with `/mnt/model`", "WeightsRefused"),
        ("ValueError: Model architectures ['X'] are not supported for now. Supported: [...]", "WeightsRefused"),
        (
            "AssertionError: Attempted to load weight (torch.Size([256])) into parameter (torch.Size([128]))",
            "WeightsRefused",
        ),
        ("ValueError: There is no module or parameter named 'bias' in LlamaForCausalLM. The ...", "WeightsRefused"),
        (
            "ValueError: Could not find checkpoint files '/m/model-rank-0-part-*.safetensors', only pre-sharded "
            "checkpoints are currently supported!",
            "WeightsRefused",
        ),
        ("safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge", "WeightsRefused"),
        ("OSError: /mnt/model does not appear to have a file named config.json.", "WeightsRefused"),
        ("huggingface_hub.errors.GatedRepoError: 401 Client Error", "WeightsRefused"),
        ("disagg_worker: ModelError: model.safetensors: sha256 differs", "WeightsRefused"),
        ("PermissionError: [Errno 13] Permission denied: '/.cache'", "PodSecurityLevel"),
        ("OSError: [Errno 30] Read-only file system: '/app/x'", "ReadOnlyFileSystem"),
        ("Error: container has runAsNonRoot and image will run as root", "PodSecurityLevel"),
    ],
)  # fmt: skip
def test_a_line_names_its_cause(line: str, reason: str) -> None:
    assert cause_of(f"Traceback (most recent call last):\n{line}\n") == Cause(reason, line)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Segmentation fault (core dumped)",
        "WARNING 01-01 00:00:00 [nixl.py:20] NIXL is not available",
        "(EngineCore pid=7) WARNING 01-01 00:00:00 [x.py:1] address already in use, trying the next",
        "INFO: the room is full",
        "BOOM went the loop",
    ],
)
def test_other_words_name_none(text: str) -> None:
    assert cause_of(text) is None


def test_the_last_cause_counts() -> None:
    log = "PermissionError: Permission denied: '/x'\ngoing on\nOSError: Address already in use\nRuntimeError: failed"
    found = cause_of(log)
    assert found is not None
    assert (found.reason, found.line) == ("PortInUse", "OSError: Address already in use")


def test_a_long_line_is_cut_at_its_start() -> None:
    found = cause_of("x" * 5000 + " address already in use")
    assert found is not None
    assert (len(found.line), found.line.endswith("in use")) == (MAX_LINE_CHARS, True)


def test_a_tail_is_whole_lines() -> None:
    text = "\n".join(f"line {i:04}" for i in range(1000))
    tail = cleaned(text)
    assert len(tail) <= MAX_TAIL_CHARS
    assert tail.split("\n")[0].startswith("line ")
    assert tail.endswith("line 0999")
    assert cleaned("ab\ncd\nef", limit=5) == "cd\nef"
    assert cleaned("ab\ncd\nef", limit=4) == "ef"
    assert cleaned("abcdef", limit=4) == "cdef"


def test_what_controls_a_terminal_is_left_out() -> None:
    assert (
        cleaned("\x1b[1;31mred\x1b[0m\ttext\r\n\n\x07bell\x00\u202eleft\ud800\x1b]0;title\x07") == "red text\nbellleft"
    )


@given(st.text(st.characters()))
def test_a_cleaned_text_can_be_sent_and_is_bounded(text: str) -> None:
    found = cleaned(text, 64)
    assert len(found) <= 64
    found.encode()
    assert all(c == "\n" or c.isprintable() or c.isspace() for c in found)
