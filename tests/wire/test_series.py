"""Tests that the names of metrics stand in disagg_wire.series and nowhere else."""

from __future__ import annotations

import pytest
from tests.wire import registries

from disagg_wire import series

# The base name of an Info metric is no name of a series, nor is that of a label.
NAMES = {
    value
    for name, value in vars(series).items()
    if name.isupper()
    and isinstance(value, str)
    and value.startswith("disagg_")
    and name not in ("WORKER_IDENTITY", "DEPLOYMENT")
}
# All processes expose this one, each about itself.
SHARED = {series.BUILD_INFO}


def test_every_metric_stands_in_the_list_and_is_exposed_by_one_process() -> None:
    exposed: dict[str, list[str]] = {name: [] for name in NAMES}
    for process, make in registries.PROCESSES.items():
        for name in registries.metrics(make()):
            exposed.setdefault(name, []).append(process)
    assert set(exposed) - NAMES == set()
    # An adapter exposes the series of the worker that it stands for, as far as its engine tells.
    found = {name: [p for p in by if (p, "worker") != ("adapter", by[0])] for name, by in exposed.items()}
    assert {name: by for name, by in found.items() if len(by) != 1 and name not in SHARED} == {}


@pytest.mark.parametrize(
    ("read", "process"),
    [(series.READ_OF_ROUTERS, "router"), (series.READ_OF_WORKERS, "worker")],
    ids=["router", "worker"],
)
def test_the_autoscaler_reads_what_the_process_exposes_and_its_labels_are_known(
    read: tuple[str, ...], process: str
) -> None:
    """A label that is not listed would make several series one."""
    labels = registries.series(registries.PROCESSES[process]())
    assert set(read) <= set(labels)
    assert len(set(read)) == len(read)
    unknown = {name: labels[name] - set(series.READ_LABELS) for name in read if name != series.WORKER_INFO}
    assert {name: found for name, found in unknown.items() if found} == {}


def test_the_info_of_a_worker_is_its_name_with_the_suffix_of_the_client_library() -> None:
    assert f"{series.WORKER_IDENTITY}_info" == series.WORKER_INFO
    assert series.ROLE in registries.series(registries.worker())[series.WORKER_INFO]
