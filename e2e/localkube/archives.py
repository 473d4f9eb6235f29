"""Build the project's images as archives for a release, without a cluster.

Docker builds them, or a containerd that is started for the purpose.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from localkube import images, kindcluster, local, runtime
from localkube.proc import stop_recorded
from localkube.settings import Settings
from localkube.shell import locked

_LOCK_TIMEOUT_S = 45 * 60
# These do not change with the image store: programs, the base image and wheels.
_SHARED = ("programs", "base", "wheels")


@contextlib.contextmanager
def _builder(shared: Settings) -> Iterator[Settings]:
    """Start a containerd with an empty store beside any running cluster, and remove both again."""
    # A socket's path has a hundred characters at most, so the store is not below the repository.
    with tempfile.TemporaryDirectory(prefix="disagg-", ignore_cleanup_errors=True) as folder:
        own = Settings(cache=Path(folder) / "cache", state=Path(folder) / "state")
        own.make_folders()
        for name in _SHARED:
            (shared.cache / name).mkdir(parents=True, exist_ok=True)
            (own.cache / name).symlink_to(shared.cache / name)
        runtime.write_configs(own)
        try:
            runtime.start(own)
            yield own
        finally:
            for name in ("buildkitd", "containerd"):
                stop_recorded(own.pids / f"{name}.json", grace_s=5)
            local.unmount_below(Path(folder))


def write(folder: Path, names: dict[str, tuple[str, str]]) -> list[Path]:
    """Build images (name -> tag, file name of the archive) into the folder; return the archives."""
    settings = Settings.from_env()
    mode = "kind" if kindcluster.engine_answers() else "local"
    with locked(settings.state.with_name("e2e.lock"), timeout_s=_LOCK_TIMEOUT_S):
        if mode == "local":
            local.require_root()
            local.build_programs(settings)
        images.start_preparing(settings, mode, tuple(names)).wait()
    with _builder(settings) if mode == "local" else contextlib.nullcontext(settings) as own:
        for name, (tag, archive) in names.items():
            images.export(own, mode, images.IMAGES[name], tag, folder / archive)
            (folder / archive).chmod(0o644)  # BuildKit lets anybody write it
    return [folder / archive for _, archive in names.values()]
