# SPDX-License-Identifier: Apache-2.0
"""A pod in small: a cgroup and a network namespace with a loopback, held by a
process of the pod, so that killing the cgroup removes both."""

import contextlib
import json
import os
import pathlib
import subprocess
import time

RUN = pathlib.Path("/run/shunt-bench")
PORT = 8080
REDIRECTED_PORT = 8081
HOP_GRACE_SECONDS = 20


class Failure(Exception):
    """Something could not be measured: action: object: cause, and what to do."""


class Skipped(Failure):
    """A program that the row needs is not there."""


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


def make_directory(path, uid=0):
    path.mkdir(mode=0o755)
    os.chown(path, uid, uid)
    return path


class Pod:
    def __init__(self, name, cgroup, hop=None):
        self.name = name
        self.cgroup = cgroup
        self.directory = make_directory(RUN / name)
        self._hop = hop
        self._programs = cgroup / "programs"
        cgroup.mkdir()
        self._pause = subprocess.Popen(
            inside(cgroup, ["unshare", "--net", "sh", "-c",
                            "ip link set lo up && echo up && exec sleep infinity"]),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            start_new_session=True)  # a terminal's Ctrl-C is for run.py alone
        if self._pause.stdout.readline() != "up\n":
            raise Failure(f"making pod {name}: its network namespace did not come up")
        self._netns = f"/proc/{self._pause.pid}/ns/net"

    def _command(self, *command, uid=None, cgroup=None):
        user = [] if uid is None else ["setpriv", f"--reuid={uid}", f"--regid={uid}",
                                       "--clear-groups", "--"]
        return inside(cgroup or self.cgroup, ["nsenter", f"--net={self._netns}", *user, *command])

    # ---- network -----------------------------------------------------------------

    def link(self, other, own, others):
        """A veth pair to another pod; the other one is the default gateway."""
        self.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", f"to-{self.name}",
                 "netns", other._pause.pid)
        for pod, device, address in ((self, "eth0", own), (other, f"to-{self.name}", others)):
            pod.run("ip", "address", "add", f"{address}/30", "dev", device)
            pod.run("ip", "link", "set", device, "up")
        self.run("ip", "route", "add", "default", "via", others)

    @contextlib.contextmanager
    def nat(self, *rules):
        """As a sidecar injector does: NAT in the pod, so conntrack sees its packets."""
        self.run("nft", "-f", "-", stdin="\n".join((
            "table ip sidecar {", "chain output {", "type nat hook output priority -100;", *rules,
            "}", "}", "")))
        delete = ("nft", "delete", "table", "ip", "sidecar")
        try:
            yield
        except BaseException:
            with contextlib.suppress(Failure):  # the reason why it ends here counts
                self.run(*delete)
            raise
        self.run(*delete)

    def redirecting(self):
        return self.nat(f"tcp dport {REDIRECTED_PORT} redirect to :{PORT}")

    # ---- processes ---------------------------------------------------------------

    def run(self, *command, uid=None, stdin="", seconds=30):
        """Runs a program in the pod to its end; what it wrote."""
        what = f"{' '.join(map(str, command))} in pod {self.name}"
        try:
            result = subprocess.run(self._command(*command, uid=uid), input=stdin, text=True,
                                    capture_output=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"{what}: no end after {seconds} s: a connection is stuck; "
                          f"its sockets:\n{self.sockets()}") from None
        if result.returncode != 0:
            raise Failure(f"{what}: exit {result.returncode}: "
                          f"{(result.stderr or result.stdout).strip()}")
        return result.stdout

    def sockets(self):
        return subprocess.run(self._command("ss", "-tmin"), text=True, capture_output=True,
                              check=False).stdout

    def start_program(self, log, *command, uid=None):
        """Until end_programs(); `log` gets what it says."""
        self._programs.mkdir(exist_ok=True)
        with log.open("w") as output:
            return subprocess.Popen(self._command(*command, uid=uid, cgroup=self._programs),
                                    stdin=subprocess.DEVNULL, stdout=output,
                                    stderr=subprocess.STDOUT, start_new_session=True)

    def end_programs(self):
        clear_cgroup(self._programs)

    def listens(self, port):
        return bool(self.run("ss", "-Hltn", f"sport = :{port}").strip())

    def start(self, *arguments):
        return subprocess.Popen(self._command(self._hop, *arguments, "--port", PORT),
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

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
