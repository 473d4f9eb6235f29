"""PURE: The Python programs that run in the container of a stock engine image.

They are given to `python3 -c`, because the images hold no file of ours. LAUNCH becomes the engine;
PREPARE runs before, in an init container. Neither may contain a dollar sign, which the kubelet
expands.
"""

from __future__ import annotations

# Stands for the key of the engine in its command; LAUNCH puts the key there.
KEY_PLACE = "ENGINE-KEY"

# Arguments: the interface or "", the transport, the variables that get the interface's address
# (with commas), 1 if UCX is to use the interface, the file of the key or "", and the command.
LAUNCH = """\
import fcntl, os, socket, struct, sys
name, transport, variables, pin, key_file, *command = sys.argv[1:]
def address():
    try:
        request = struct.pack("256s", name.encode())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            return socket.inet_ntoa(fcntl.ioctl(probe, 0x8915, request)[20:24])
    except OSError:
        pass
    with open("/proc/net/if_inet6") as table:
        for digits, _, _, scope, _, interface in map(str.split, table):
            if interface == name and scope == "00":
                return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
    sys.exit(f"interface {name}: has no address; is the network of spec.kvTransfer attached?")
if name:
    own = address()
    for variable in filter(None, variables.split(",")):
        os.environ[variable] = own
    if pin == "1":
        folder = f"/sys/class/net/{name}/device/infiniband"
        adapters = [f"{a}:1" for a in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
        devices = {"tcp": [name], "rdma": adapters}.get(transport, [*adapters, name])
        if devices:
            os.environ["UCX_NET_DEVICES"] = ",".join(devices)
if key_file:
    with open(key_file) as file:
        key = file.read()
    command = [key if part == "ENGINE-KEY" else part for part in command]
os.execvp(command[0], command)
"""

# Arguments: the folder of the model or "", the folder for copies of its small files, and the file
# for a new key or "".
PREPARE = """\
import os, pathlib, secrets, shutil, sys
source, target, key_file = sys.argv[1:]
if source:
    folder = pathlib.Path(source)
    if not (folder / "config.json").is_file():
        sys.exit(f"spec.model.uri: the image of the engine has no {source}/config.json")
    for pattern in ("*.json", "*.model", "*.jinja", "*.txt", "*.tiktoken", "tokenizer*"):
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, pathlib.Path(target, file.name))
if key_file:
    with open(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640), "w") as file:
        file.write(secrets.token_hex(32))
"""
