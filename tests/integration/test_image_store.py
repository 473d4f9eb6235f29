"""Tests of the local cluster's image store with a real containerd.

Files that the store has lost are noticed before a build fails because of them.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "e2e"))

from localkube import runtime
from localkube.proc import stop_recorded
from localkube.settings import PAUSE_IMAGE, Settings

# A daemon outlives its starter on purpose, and Python warns about that when the handle is
# collected.
pytestmark = [
    pytest.mark.apiserver,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def settings() -> Iterator[Settings]:
    """A separate containerd beside any cluster that runs, with the programs that are already
    built.
    """
    built = Settings.from_env().cache / "programs"
    # The path of a socket has about a hundred characters at most, so the socket is not created
    # below pytest's own folder.
    with tempfile.TemporaryDirectory(prefix="store-") as folder:
        made = Settings(cache=Path(folder) / "cache", state=Path(folder) / "state")
        made.make_folders()
        (made.cache / "programs").symlink_to(built)
        runtime.write_configs(made)
        yield made
        stop_recorded(made.pids / "containerd.json")


def _manifest(settings: Settings) -> Path:
    """Return the file of the pause image's manifest.

    containerd may collect others, such as the index of the imported archive.
    """
    (row,) = [
        line.split() for line in runtime.ctr(settings, "images", "list").splitlines() if line.startswith(PAUSE_IMAGE)
    ]
    return settings.containerd_root / "io.containerd.content.v1.content" / "blobs" / Path(*row[2].split(":"))


def _note_a_build(settings: Settings) -> Path:
    note = settings.built_images("local") / "worker.json"
    note.parent.mkdir()
    note.write_text("{}")
    return note


def test_a_store_that_lacks_a_file_is_emptied_and_filled_again(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    runtime.start(settings)
    lost = _manifest(settings)
    stop_recorded(settings.pids / "containerd.json")
    note = _note_a_build(settings)
    lost.unlink()

    runtime.start(settings)

    # One at least: on a busy machine containerd has collected another one, and not yet noted it.
    assert re.search(r"lacks [1-9][0-9]* of its files", capfd.readouterr().err)
    assert runtime.has_image(settings, PAUSE_IMAGE)
    assert lost.is_file()
    # The next `up --images` would otherwise assume that the image of the worker is built.
    assert not note.exists()


def test_a_whole_store_is_kept(settings: Settings) -> None:
    runtime.start(settings)
    made_s = _manifest(settings).stat().st_mtime
    stop_recorded(settings.pids / "containerd.json")
    note = _note_a_build(settings)

    runtime.start(settings)

    assert _manifest(settings).stat().st_mtime == made_s
    assert note.exists()
