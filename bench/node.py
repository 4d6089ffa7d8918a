# SPDX-License-Identifier: Apache-2.0
"""A node in small: two pods (cgroup + network namespace with a loopback), one of
which the agent is told of, and the agent.

Nothing has a name outside of one cgroup and one directory. Namespaces are held
by a process of the pod, the agent's bpffs by its own mount namespace. So killing
the cgroup removes everything: namespaces, mount, pins, links. A run that was
killed is cleared away by the next one. One run at a time per machine (a lock).
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import time

RUN = pathlib.Path("/run/shunt-bench")
PORT = 8080
REDIRECTED_PORT = 8081
START_SECONDS = 15
HOP_GRACE_SECONDS = 20


class Failure(Exception):
    """Something could not be measured: action: object: cause, and what to do."""


class NoAnswer(Failure):
    """The agent runs and does not answer."""


class AgentEnded(Failure):
    """Nothing more can be measured."""


def cgroup2_root():
    for line in pathlib.Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return pathlib.Path(where)
    raise Failure("finding the cgroup v2 tree: none is mounted; "
                  "mount -t cgroup2 none /sys/fs/cgroup/unified")


@contextlib.contextmanager
def exclusive():
    # A directory that is there anyway, so no lock file stays behind.
    root = cgroup2_root()
    lock = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Failure(f"locking {root}: another benchmark runs on this machine; "
                      "wait until it has ended") from None
    finally:
        os.close(lock)


def inside(cgroup, command):
    """The command line that runs `command` as a member of the cgroup."""
    return ["sh", "-c", 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"', "sh", str(cgroup),
            *map(str, command)]


def clear_cgroup(cgroup):
    """Kills every member of it and of its children and removes them. Idempotent."""
    if not cgroup.exists():
        return
    (cgroup / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 10
    while "populated 1" in (cgroup / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise Failure(f"ending processes of {cgroup}: some are left after 10 s")
        time.sleep(0.01)
    for child in cgroup.iterdir():
        if child.is_dir():
            clear_cgroup(child)
    cgroup.rmdir()


class Pod:
    def __init__(self, name, cgroup, hop):
        self.name = name
        self.cgroup = cgroup
        self._hop = hop
        cgroup.mkdir()
        pause = subprocess.Popen(
            inside(cgroup, ["unshare", "--net", "sh", "-c",
                            "ip link set lo up && echo up && exec sleep infinity"]),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        if pause.stdout.readline() != "up\n":
            raise Failure(f"making pod {name}: its network namespace did not come up")
        self._netns = f"/proc/{pause.pid}/ns/net"

    def _command(self, *command):
        return inside(self.cgroup, ["nsenter", f"--net={self._netns}", *command])

    def start(self, *arguments):
        return subprocess.Popen(self._command(self._hop, *arguments, "--port", PORT),
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    @contextlib.contextmanager
    def redirecting(self):
        """As a sidecar injector does: NAT in the pod, so conntrack sees its packets."""
        self._nft("table ip sidecar {\n chain output {\n"
                  "  type nat hook output priority -100\n"
                  f"  tcp dport {REDIRECTED_PORT} redirect to :{PORT}\n }}\n}}\n")
        yield
        self._nft("delete table ip sidecar\n")

    def _nft(self, rules):
        result = subprocess.run(self._command("nft", "-f", "-"), input=rules, text=True,
                                capture_output=True, check=False)
        if result.returncode != 0:
            raise Failure(f"changing the nft rules of pod {self.name}: {result.stderr.strip()}")

    def hop(self, *arguments):
        """Runs hop to its end; its figures."""
        process = self.start(*arguments)
        try:
            output, error = process.communicate(timeout=HOP_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Failure(f"hop {' '.join(map(str, arguments))} in pod {self.name}: no end after "
                          f"{HOP_GRACE_SECONDS} s: a connection is stuck") from None
        if process.returncode != 0:
            raise Failure(f"hop {' '.join(map(str, arguments))} in pod {self.name}: "
                          f"{error.strip() or f'exit {process.returncode}'}")
        return json.loads(output)


class Agent:
    """The real agent, told of one pod. stop() leaves no trace of it in the kernel."""

    def __init__(self, binaries, cgroup, pod):
        self._agent = binaries / "shunt-agent"
        self._ctl = binaries / "shuntctl"
        self._cgroup = cgroup
        self._pod = pod
        self._socket = RUN / "agent.sock"
        self._config = RUN / "agent.yaml"
        self._log = RUN / "agent.log"
        self._process = None
        (RUN / "bpf").mkdir()
        self._config.write_text(f"""\
apiVersion: shunt.dev/v1alpha1
kind: AgentConfig
engine: auto
bpffs: {RUN}/bpf/shunt
admin: {{socket: {self._socket}, metrics: "127.0.0.1:9464"}}
static:
  pods:
  - uid: {pod.name}
    cgroup: {pod.cgroup}
    ports: ["{PORT}"]
""")

    @property
    def running(self):
        return self._process is not None

    def start(self):
        """Returns the seconds from exec until a byte was redirected, of
        connections that are made in a loop."""
        self._cgroup.mkdir()
        traffic = self._pod.start("connect", "--seconds", START_SECONDS)
        try:
            with self._log.open("w") as log:
                began = time.monotonic()
                self._process = subprocess.Popen(
                    inside(self._cgroup, [
                        "unshare", "--net", "--mount", "--propagation", "private", "sh", "-c",
                        'ip link set lo up && mount -t bpf bpf "$1" && shift && exec "$@"', "sh",
                        RUN / "bpf", self._agent, "--config", self._config]),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            while time.monotonic() < began + START_SECONDS - 1:
                with contextlib.suppress(NoAnswer):
                    if self.status()["redirectedBytes"] > 0:
                        return time.monotonic() - began
                time.sleep(0.005)
        finally:
            traffic.kill()
            traffic.communicate()
        raise AgentEnded(f"starting {self._agent}: nothing was redirected within "
                         f"{START_SECONDS - 1} s; {self._last_words()}")

    def _last_words(self):
        return "the end of its log:\n" + "".join(
            self._log.read_text().splitlines(keepends=True)[-10:])

    def stop(self):
        clear_cgroup(self._cgroup)
        self._process = None

    def status(self):
        result = subprocess.run(
            [self._ctl, "--socket", self._socket, "--output", "json", "status"],
            capture_output=True, text=True, timeout=10, check=False)
        if result.returncode == 0:
            return json.loads(result.stdout)
        if self._process.poll() is not None:
            raise AgentEnded(f"running {self._agent}: exit {self._process.returncode}; "
                             f"{self._last_words()}")
        raise NoAnswer(f"asking {self._ctl} for the agent's status: {result.stderr.strip()}")

    def resident_bytes(self):
        for line in pathlib.Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise Failure(f"reading /proc/{self._process.pid}/status: no VmRSS; did the agent end?")

    def cpu_seconds(self):
        tasks = pathlib.Path(f"/proc/{self._process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Node:
    def __init__(self, binaries, hop):
        self._binaries = binaries
        self._hop = hop
        self._cgroup = cgroup2_root() / "shunt-bench"

    def __enter__(self):
        self._clear()
        RUN.mkdir(mode=0o700)
        self._cgroup.mkdir()
        try:
            self.listed = Pod("listed", self._cgroup / "listed", self._hop)
            self.unlisted = Pod("unlisted", self._cgroup / "unlisted", self._hop)
            self.agent = Agent(self._binaries, self._cgroup / "agent", self.listed)
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(self, *_):
        self._clear()

    def _clear(self):
        clear_cgroup(self._cgroup)
        shutil.rmtree(RUN, ignore_errors=True)
