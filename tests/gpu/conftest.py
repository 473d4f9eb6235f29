"""The collection of these tests, which need a GPU (`make test-gpu`)."""

from __future__ import annotations

import os

import pytest
import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
if torch.cuda.is_available() and torch.cuda.device_count() < 2:
    collect_ignore_glob.append("test_ranks.py")
if "DISAGG_TEST_ENGINE_URL" not in os.environ:
    collect_ignore_glob.append("test_engine_conversations.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/gpu/" in str(item.path):
            item.add_marker(pytest.mark.gpu)
