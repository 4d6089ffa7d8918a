# SPDX-License-Identifier: Apache-2.0
"""A node in small: two pods (cgroup + network namespace with a loopback), one of
which the agent is told of, a third one that both reach by veth, and the agent.

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

from pod import (PORT, RUN, AgentEnded, Failure, NoAnswer, Pod, cgroup2_root, clear_cgroup, inside)

# Server ports of all programs that rows.py and paths.py start.
LISTED_PORTS = (PORT, 8090, 15001, 6379)
START_SECONDS = 15


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
        self._write_config(f"""\
  pods:
  - uid: {pod.name}
    cgroup: {pod.cgroup}
    ports: [{", ".join(f'"{port}"' for port in LISTED_PORTS)}]
""")

    def _write_config(self, pods):
        self._config.write_text(f"""\
apiVersion: shunt.dev/v1alpha1
kind: AgentConfig
engine: auto
bpffs: {RUN}/bpf/shunt
admin: {{socket: {self._socket}, metrics: "127.0.0.1:9464"}}
static:
{pods}""")

    def unlist(self):
        """From now on no pod is listed; it reloads the file by itself."""
        self._write_config("  pods: []\n")
        deadline = time.monotonic() + START_SECONDS
        while self.status()["podsEnrolling"]:
            if time.monotonic() > deadline:
                raise Failure(f"unlisting pod {self._pod.name}: it is still being enrolled after "
                              f"{START_SECONDS} s; {self._last_words()}")
            time.sleep(0.05)

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
                    stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True)
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
        RUN.mkdir(mode=0o755)
        self._cgroup.mkdir()
        try:
            self.listed = Pod("listed", self._cgroup / "listed", self._hop)
            self.unlisted = Pod("unlisted", self._cgroup / "unlisted", self._hop)
            self.remote = Pod("remote", self._cgroup / "remote")
            for number, pod in enumerate((self.listed, self.unlisted)):
                pod.link(self.remote, own=f"192.0.2.{4 * number + 2}",
                         others=self.gateway_of(pod))
            self.agent = Agent(self._binaries, self._cgroup / "agent", self.listed)
        except BaseException:
            self._clear()
            raise
        return self

    def gateway_of(self, pod):
        """The remote pod's address on the veth pair to this one (RFC 5737)."""
        return f"192.0.2.{4 * (self.listed, self.unlisted).index(pod) + 1}"

    def __exit__(self, *_):
        self._clear()

    def _clear(self):
        clear_cgroup(self._cgroup)
        shutil.rmtree(RUN, ignore_errors=True)
