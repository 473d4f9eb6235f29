"""PURE: The Python programs that run in the container of a stock engine image.

They are given to `python3 -c`, because the images hold no file of ours. LAUNCH runs the engine;
PREPARE runs before, in an init container. Neither may contain a dollar sign, which the kubelet
expands.

LAUNCH stays the first process, although it could become the engine, for two reasons. The kubelet
takes only the last 2 KiB of a log, and engines print the cause of their end far above: LAUNCH
passes the output on, and if the engine fails, it leaves the last lines and the errors before them
in the container's termination message. And the kernel ignores most signals that the first process
sends to itself, by which engines end themselves after a failure.
"""

from __future__ import annotations

from disagg_operator.engines.probe_text import PROBE

# Stands for the key of the engine in its command; LAUNCH puts the key there.
KEY_PLACE = "ENGINE-KEY"
# Where Kubernetes mounts a container's termination message.
MESSAGE_FILE = "/dev/termination-log"

_SIGNALS = """\
import signal
signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# A signal that comes before there is an engine waits until there is.
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
"""

_ENGINE = """\
import collections, fcntl, json, os, re, selectors, socket, struct, subprocess, sys, time
message_file, names, transport, variables, pin, key_file, asked, *command = sys.argv[1:]
interfaces = [name for name in names.split(",") if name]
def address(name):
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
if interfaces:
    own = address(interfaces[0])
    for variable in filter(None, variables.split(",")):
        os.environ[variable] = own
report = look(interfaces)
if interfaces and pin == "1":
    for variable, value in environment(interfaces, report["ports"], transport).items():
        os.environ.setdefault(variable, value)  # what the user has set stays
if asked:
    asked = json.loads(asked)
    report |= {"asked": asked["asked"], "bytes": asked["bytes"], "usable": [p["name"] for p in usable(report["ports"])]}
    report["error"] = register(report["ports"], asked["bytes"])
    try:
        with open(asked["file"] + ".new", "w") as file:
            json.dump(report, file)
        os.replace(asked["file"] + ".new", asked["file"])
    except OSError as error:
        print(f"{asked['file']}: {error}", file=sys.stderr)
if key_file:
    with open(key_file) as file:
        key = file.read()
    command = [key if part == "ENGINE-KEY" else part for part in command]

# The line of a traceback that names the exception, with or without the logger's words before it.
FAILED = re.compile(
    rb"(?:^|(?<!raise)[ \\]])"
    rb"((?:[a-z_]\\w*\\.)*[A-Z]\\w*(?:Error|Exception|Failure)\\b(?:: .*)?|Value error, .*)\\Z"
)
HARMLESS = re.compile(rb"\\W*(?:\\(\\w+[^)]*\\)\\s*)?\\[?(?:WARNING|WARN|INFO|DEBUG)\\b")
last = collections.deque(maxlen=80)
errors = {}  # when each error was last told, in the order in which they were first told
rest = {1: b"", 2: b""}  # the unfinished line of each stream
def note(line):
    line = line.rstrip(b"\\r").rpartition(b"\\r")[2]  # of a progress bar, its last state
    if line.strip():
        last.append(line[:300])
        if not HARMLESS.match(line) and (found := FAILED.search(line)):
            errors[found[1][:300]] = time.monotonic()
            if len(errors) > 32:
                del errors[next(iter(errors))]
def relay(pipe, stream):
    data = os.read(pipe, 65536)
    *lines, rest[stream] = (rest[stream] + data).split(b"\\n")
    rest[stream] = rest[stream][-8192:]
    for line in lines:
        note(line)
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(stream, left):]
        except OSError:  # nobody reads the log, which is no reason to stop the engine
            break
    return data
def leave_message():
    for line in rest.values():
        note(line)
    shown, size = [], 0
    for line in reversed(last):
        size += len(line) + 1
        if size > 1800:
            break
        shown.append(line)
    since = time.monotonic() - 120  # what the engine lived with for longer did not end it
    recent = [e for e, at in errors.items() if at > since and not any(e[:150] in line for line in shown)]
    while sum(map(len, recent)) > 600:
        del recent[len(recent) // 2]
    above = [b"errors above these lines:", *recent] if recent else []
    with open(message_file, "wb") as file:
        file.write(b"\\n".join([*reversed(shown), *above]))

woken, wake = os.pipe()
for end in (woken, wake):
    os.set_blocking(end, False)
signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
signal.signal(signal.SIGCHLD, lambda *_: None)
pipes, ends = zip(os.pipe(), os.pipe())
try:
    engine = subprocess.Popen(
        command, stdout=ends[0], stderr=ends[1],
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, signals),
    ).pid
except OSError as error:
    sys.exit(f"{command[0]}: {error.strerror}")
for number in signals:
    signal.signal(number, lambda given, _: os.kill(engine, given))
signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
selector = selectors.DefaultSelector()
selector.register(woken, selectors.EVENT_READ, 0)
for stream, (pipe, end) in enumerate(zip(pipes, ends), 1):
    os.close(end)
    selector.register(pipe, selectors.EVENT_READ, stream)
code = None
while code is None:
    for key, _ in selector.select():
        if key.data and not relay(key.fd, key.data):
            selector.unregister(key.fd)
        elif not key.data:
            os.read(woken, 4096)
    while code is None:  # also the children that the engine has left behind
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if not ended:
            break
        if ended == engine:
            code = os.waitstatus_to_exitcode(status)
# Processes that the engine has left behind may hold the pipes open, so only what is there is read.
for stream, pipe in enumerate(pipes, 1):
    os.set_blocking(pipe, False)
    try:
        for _ in range(64):
            if not relay(pipe, stream):
                break
    except BlockingIOError:
        pass
if code:
    try:
        leave_message()
    except OSError:  # the kubelet then takes the end of the log
        pass
sys.exit(code if code >= 0 else 128 - code)
"""

# Arguments: the file of the termination message, the interfaces (with commas) or "", the transport,
# the variables that get the first interface's address (with commas), 1 if libraries are to use the
# interfaces and their devices, the file of the key or "", what the report on the network is to be
# about or "", and the command.
LAUNCH = _SIGNALS + PROBE + _ENGINE

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
