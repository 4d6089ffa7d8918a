# SPDX-License-Identifier: Apache-2.0
"""Real programs in a pod, configured as scripts/demo configures them."""

import csv
import http.client
import io
import json
import pathlib
import random
import shutil
import sys
import tempfile
import time

from pod import PORT, Failure, Skipped, make_directory

LIB = pathlib.Path(__file__).resolve().parent.parent / "scripts" / "lib"
sys.path.insert(0, str(LIB))
from demo_report import ENVOY_COUNTERS, envoy_bytes, parse_wrk  # noqa: E402

APP_UID = 1000
PROXY_UID = 1337
REDIS_PORT = 6379
HAPROXY_PORT = 8090
START_SECONDS = 20
PACKAGE_OF = {"nginx": "nginx-light", "wrk": "wrk", "redis-server": "redis-server",
              "curl": "curl", "redis-benchmark": "redis-tools", "redis-cli": "redis-tools", "haproxy": "haproxy",
              "setpriv": "util-linux", "nft": "nftables"}
SIDECAR_RULES = (f"meta skuid {PROXY_UID} return", "ip daddr 127.0.0.0/8 return",
                 "meta l4proto tcp redirect to :15001")


def require(*programs):
    missing = [name for name in programs if not shutil.which(name)]
    if missing:
        packages = " ".join(sorted({PACKAGE_OF[name] for name in missing}))
        raise Skipped(f"there is no {', '.join(missing)} on this machine: "
                      f"apt-get install {packages}")


def wait_until(what, condition, log):
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-10:])
            raise Failure(f"{what}: not within {START_SECONDS} s; the end of its log:\n{tail}")
        time.sleep(0.05)


def _fresh(pod, name, uid):
    shutil.rmtree(pod.directory / name, ignore_errors=True)
    return make_directory(pod.directory / name, uid)


def _from_template(template, directory, name):
    text = (LIB / template).read_text().replace("@RUN@", str(directory))
    path = directory / name
    path.write_text(text)
    return path


# ---- nginx, the app -------------------------------------------------------------


def start_nginx(pod, sizes):
    require("nginx")
    directory = _fresh(pod, "app", APP_UID)
    make_directory(directory / "tmp", APP_UID)
    make_directory(bodies(pod))
    for size in sizes:
        (bodies(pod) / str(size)).write_bytes(random.Random(f"{pod.name}{size}").randbytes(size))
    config = _from_template("pod_nginx.conf", directory, "nginx.conf")
    log = directory / "output.log"
    pod.start_program(log, "nginx", "-e", directory / "nginx.log", "-c", config, uid=APP_UID)
    wait_until(f"nginx of pod {pod.name} listens", lambda: pod.listens(PORT), log)


def bodies(pod):
    return pod.directory / "app" / "www"


def check_bodies(pod, port, size, seconds):
    """Byte for byte, over 4 connections; how many."""
    with tempfile.TemporaryDirectory(dir=pod.directory) as only:
        (pathlib.Path(only) / str(size)).symlink_to(bodies(pod) / str(size))
        result = pod.run("/usr/bin/python3", LIB / "pod_check.py", "--address",
                         f"127.0.0.1:{port}", "--bodies", only, "--connections", 4,
                         "--seconds", seconds)
    return json.loads(result)["requests"]


# ---- Envoy, the sidecar ---------------------------------------------------------


class Envoy:
    HOPS = {"both": ENVOY_COUNTERS,
            "app": tuple(name for name in ENVOY_COUNTERS if "downstream" in name)}

    def __init__(self, pod, binary):
        directory = _fresh(pod, "sidecar", PROXY_UID)
        self._admin = directory / "admin.sock"
        config = _from_template("pod_envoy.yaml", directory, "envoy.yaml")
        log = directory / "envoy.log"
        pod.start_program(log, binary, "-c", config, "--concurrency", 1, "--disable-hot-restart",
                          "--log-level", "error", uid=PROXY_UID)
        wait_until(f"Envoy of pod {pod.name} listens", lambda: pod.listens(15001), log)

    def bytes(self, hops):
        """What it has received and sent: each direction of the hops once."""
        try:
            return envoy_bytes(str(self._admin), self.HOPS[hops])
        except (OSError, http.client.HTTPException) as error:
            raise Failure(f"asking Envoy at {self._admin} for its counters: {error}") from None


# ---- HAProxy --------------------------------------------------------------------

HAPROXY_CONFIG = f"""\
global
    nbthread 1
    maxconn 256
defaults
    mode http
    option splice-auto
    # By itself, auto splices next to nothing.
    option splice-request
    option splice-response
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend app
    bind 127.0.0.1:{HAPROXY_PORT}
    http-request use-service prometheus-exporter if {{ path /metrics }}
    default_backend nginx
backend nginx
    server nginx 127.0.0.1:{PORT}
"""


def start_haproxy(pod):
    require("haproxy")
    directory = _fresh(pod, "haproxy", APP_UID)
    config = directory / "haproxy.cfg"
    config.write_text(HAPROXY_CONFIG)
    log = directory / "haproxy.log"
    pod.start_program(log, "haproxy", "-db", "-f", config, uid=APP_UID)
    wait_until(f"HAProxy of pod {pod.name} listens", lambda: pod.listens(HAPROXY_PORT), log)


def haproxy_spliced(pod):
    """(bytes that it spliced, bytes that it sent)"""
    metrics = pod.run("curl", "-sSf", "--max-time", 10,
                      f"http://127.0.0.1:{HAPROXY_PORT}/metrics")
    fields = dict(line.rsplit(" ", 1) for line in metrics.splitlines()
                  if line.startswith("haproxy_process_"))
    return tuple(int(fields[f"haproxy_process_{name}_total"])
                 for name in ("spliced_bytes_out", "bytes_out"))


# ---- wrk ------------------------------------------------------------------------


def wrk(pod, url, connections, seconds, host=None):
    headers = ["--header", f"Host: {host}"] if host else []
    output = pod.run("wrk", "--threads", 1, "--connections", connections, "--latency",
                     "--duration", f"{seconds}s", "--timeout", "5s", *headers, url,
                     uid=APP_UID, seconds=seconds + 20)
    result = parse_wrk(output)
    if result["socket_errors"] or result["bad_status"] or not result["requests"]:
        raise Failure(f"wrk {url} in pod {pod.name}: {result['requests']} requests, "
                      f"{result['socket_errors']} socket errors and {result['bad_status']} bad "
                      "responses, expected none")
    return result


# ---- Redis ----------------------------------------------------------------------


class Redis:
    def __init__(self, pod):
        require("redis-server", "redis-benchmark", "redis-cli")
        directory = _fresh(pod, "redis", APP_UID)
        self._pod = pod
        self._socket = directory / "redis.sock"
        log = directory / "redis.log"
        pod.start_program(log, "redis-server", "--bind", "127.0.0.1", "--port", REDIS_PORT,
                          "--unixsocket", self._socket, "--save", "", "--dir", directory,
                          uid=APP_UID)
        wait_until(f"Redis of pod {pod.name} listens", lambda: pod.listens(REDIS_PORT), log)

    def _where(self, unix):
        return ("-s", self._socket) if unix else ("-h", "127.0.0.1", "-p", REDIS_PORT)

    def _bytes(self, unix):
        stats = self._pod.run("redis-cli", *self._where(unix), "info", "stats")
        fields = dict(line.split(":", 1) for line in stats.splitlines() if ":" in line)
        return int(fields["total_net_input_bytes"]) + int(fields["total_net_output_bytes"])

    def measure(self, unix, clients, pipeline, requests):
        before = self._bytes(unix)
        output = self._pod.run("redis-benchmark", *self._where(unix), "-t", "set,get", "--csv",
                               "-d", 64, "-c", clients, "-P", pipeline, "-n", requests,
                               "--precision", 3, seconds=60)
        rows = list(csv.DictReader(io.StringIO(output)))
        return {"rps": len(rows) / sum(1 / float(row["rps"]) for row in rows),
                "payloadBytes": self._bytes(unix) - before, "commands": rows}
