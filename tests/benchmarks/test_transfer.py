"""Tests of the pure parts of the transfer's benchmarks."""

from __future__ import annotations

import pytest
from benchmarks.transfer import handover, profile


def test_samples_are_of_the_part_in_which_they_were_taken() -> None:
    report = [
        "# Overhead  Shared Object  Symbol",
        "    40.00%  _rust.abi3.so          [.] ossl_aes_gcm_update_aad_avx512",
        "    10.00%  [kernel.kallsyms]      [k] _copy_from_iter",
        "    20.00%  [kernel.kallsyms]      [k] handle_softirqs",
        "     5.00%  libpython3.11.so.1.0   [.] _PyEval_EvalFrameDefault",
        "     5.00%  libc.so.6              [.] __libc_sendmsg",
        "",
    ]
    # What perf leaves out is spread over the parts.
    assert list(profile.shares(report).values()) == pytest.approx([0.5, 0.125, 0.25, 0.125])


def test_the_delay_is_shown_in_steps_of_the_quiet_engine() -> None:
    quiet = [[0.020, 0.0, 0.0], [0.020, 0.001, 0.0]]
    busy = [[0.030, 0.008, 0.001], [0.060, 0.025, 0.010], [0.040, 0.0, 0.004]]
    (before, here, _) = handover.step_rows(
        "larger", [{"quiet_s": quiet, "busy_s": busy}], [{"quiet_s": quiet, "busy_s": quiet}]
    )
    assert before == "| larger | before | 20.0 | 20.0 | 1.0 | 0.0 | 0.00 |"
    assert here == "| larger | while KV arrives | 40.0 | 60.0 | 25.0 | 10.0 | 0.50 |"
