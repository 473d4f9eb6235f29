"""Build a small wheel that lets PyPI's CUDA build of torch run on a machine without a GPU.

PyPI has no CPU-only torch for x86_64; the CUDA build pulls 2.5 GB of NVIDIA libraries. On a CPU
they are loaded but never called, so a library that merely exports the same symbols (with the same
GNU versions) is enough. The CUDA runtime, CUPTI and cuFile stay real, because they run code when
they are loaded. The wheel is for tests and CPU images only, never for a GPU image.

Usage: torch_cpu_stubs.py TORCH_LIB_DIR OUT_DIR

It needs gcc and readelf, and prints the path of the wheel.
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "2.15.0"
# The driver must stay absent, because its presence means that there is a GPU.
REAL = ("libcudart.so", "libcupti.so", "libcufile.so", "libcuda.so")
FOREIGN = re.compile(r"^lib(cu|nv|nccl)[A-Za-z_]*\.so")
NVIDIA_SYMBOL = re.compile(
    r"^(cudnn|nccl|cusparseLt|cusparse|cublasLt|cublas|cufft|cusolver|nvrtc|nvshmem|nvJitLink|curand)"
)
# The RPATH of torch's libraries, below site-packages.
LIB_DIR = "nvidia/cu13/lib"


def _readelf(flag: str, path: Path) -> str:
    return subprocess.run(["readelf", "-W", flag, str(path)], check=True, capture_output=True, text=True).stdout


def needed_stubs(libs: list[Path]) -> set[str]:
    """Return the sonames that need a stub.

    Torch's libraries need them, none of torch's own libraries provides them, and they need not be
    real.
    """
    own = {lib.name for lib in libs}
    needed = {name for lib in libs for name in re.findall(r"\(NEEDED\).*\[(.+?)\]", _readelf("-d", lib))}
    return {n for n in needed - own if FOREIGN.match(n) and not n.startswith(REAL)}


def symbols_by_stub(libs: list[Path], stubs: set[str]) -> dict[str, dict[str, set[str]]]:
    """Return {soname: {version or "": symbols}} with the symbols that torch expects from the
    stubs.
    """
    out: dict[str, dict[str, set[str]]] = {name: {} for name in sorted(stubs)}
    catch_all = sorted(stubs)[0]
    for lib in libs:
        owner_of_version: dict[str, str] = {}
        soname = ""
        for line in _readelf("-V", lib).splitlines():
            if m := re.search(r"File: (\S+)", line):
                soname = m.group(1)
            elif (m := re.search(r"Name: (\S+)\s+Flags", line)) and soname in stubs:
                owner_of_version[m.group(1)] = soname
        for line in _readelf("--dyn-syms", lib).splitlines():
            m = re.search(r"\sUND\s+([^\s@]+)(?:@(\S+))?", line)
            if not m:
                continue
            name, version = m.group(1), m.group(2) or ""
            if version in owner_of_version:
                out[owner_of_version[version]].setdefault(version, set()).add(name)
            elif not version and NVIDIA_SYMBOL.match(name):
                out[catch_all].setdefault("", set()).add(name)
    return out


def build_stub(soname: str, versions: dict[str, set[str]], out: Path) -> None:
    """Compile one shared library in which every symbol is an illegal instruction."""
    names = sorted({n for group in versions.values() for n in group})
    asm = ".text\n" + "".join(f".globl {n}\n.type {n},@function\n{n}:\n" for n in names) + "ud2\n"
    asm += '.section .note.GNU-stack,"",@progbits\n'
    with tempfile.TemporaryDirectory() as tmp:
        (Path(tmp) / "stub.s").write_text(asm)
        script = "".join(f"{v} {{ global: {'; '.join(sorted(s))}; }};\n" for v, s in sorted(versions.items()) if v)
        (Path(tmp) / "map").write_text(script)
        command = ["gcc", "-shared", "-nostdlib", f"-Wl,-soname,{soname}", "-o", str(out), f"{tmp}/stub.s"]
        subprocess.run(command + ([f"-Wl,--version-script={tmp}/map"] if script else []), check=True)


def write_wheel(libs: list[Path], out_dir: Path) -> Path:
    """Pack the stubs as a wheel, whose bytes depend on the inputs alone."""
    wheel = out_dir / f"torch_cpu_stubs-{VERSION}-py3-none-linux_x86_64.whl"
    info = f"torch_cpu_stubs-{VERSION}.dist-info"
    files = {f"{LIB_DIR}/{lib.name}": lib.read_bytes() for lib in sorted(libs)}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: torch-cpu-stubs\nVersion: {VERSION}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-linux_x86_64\n"
    rows = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in files.items()
    ]
    files[f"{info}/RECORD"] = ("\n".join([*rows, f"{info}/RECORD,,"]) + "\n").encode()
    out_dir.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o755 << 16
            z.writestr(entry, data)
    return wheel


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    libs = sorted(Path(sys.argv[1]).glob("*.so"))
    if not libs:
        sys.exit(f"no libraries in {sys.argv[1]}: is torch installed there?")
    stubs = needed_stubs(libs)
    with tempfile.TemporaryDirectory() as tmp:
        for soname, versions in symbols_by_stub(libs, stubs).items():
            build_stub(soname, versions, Path(tmp) / soname)
        print(write_wheel(sorted(Path(tmp).iterdir()), Path(sys.argv[2])))


if __name__ == "__main__":
    main()
