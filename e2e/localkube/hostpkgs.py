"""The Debian packages that the host must have.

They are installed if the user is root; otherwise they are named in the error.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from localkube.settings import ClusterError
from localkube.shell import run, say

# A package is present if its proofs are: commands, or file patterns below /usr.
FOR_CLUSTER: Mapping[str, tuple[str, ...]] = {
    "gcc": ("gcc",),
    "libc6-dev": ("include/**/stdio.h",),
    "pkg-config": ("pkg-config",),
    "libseccomp-dev": ("include/seccomp.h",),
    "iproute2": ("ip",),
    "nftables": ("nft",),
    "conntrack": ("conntrack",),
    "procps": ("sysctl",),
    "openssl": ("openssl",),
    "mount": ("mount",),
}
FOR_IMAGES: Mapping[str, tuple[str, ...]] = {
    "debootstrap": ("debootstrap",),
    "debian-archive-keyring": ("share/keyrings/debian-archive-keyring.gpg",),
    "binutils": ("readelf",),
}
# Programs that tests use and that Debian already builds: `cluster build prometheus`.
FOR_TESTS: Mapping[str, tuple[str, ...]] = {"prometheus": ("prometheus",)}
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def with_sbin() -> str:
    """Return PATH with the folders of system commands, which a plain user's PATH may lack."""
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:{SBIN}"


def _present(proofs: Iterable[str]) -> bool:
    for proof in proofs:
        if "/" in proof:
            if not any(Path("/usr").glob(proof)):
                return False
        elif shutil.which(proof, path=with_sbin()) is None:
            return False
    return True


def ensure(packages: Mapping[str, tuple[str, ...]]) -> None:
    missing = [name for name, proofs in packages.items() if not _present(proofs)]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ClusterError(f"these Debian packages are missing, and only root can install them: {' '.join(missing)}")
    say(f"installing Debian packages: {' '.join(missing)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Another installation may hold dpkg's lock for a while; with this option apt waits for it.
    run(["apt-get", "-qq", "update"], timeout_s=180, env=env)
    run(
        ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120", "install", "-y", "--no-install-recommends", *missing],
        timeout_s=600,
        env=env,
    )
    still = [name for name in missing if not _present(packages[name])]
    if still:
        raise ClusterError(f"apt-get installed {' '.join(still)}, but what they should bring is still missing")
