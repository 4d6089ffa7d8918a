#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs inside a demo pod: many keep-alive connections at once, every body compared.

Source ports are fixed, so that two pods given the same arguments use equal
127.0.0.1 tuples at the same time; bodies differ between pods, so a byte that
crossed over is seen. Prints one JSON line; exits 1 if anything differed.
"""

import argparse
import hashlib
import http.client
import json
import pathlib
import socket
import sys
import threading
import time


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Tally:
    """What all connections found. Thread-safe."""

    def __init__(self):
        self._lock = threading.Lock()
        self.requests = 0
        self.bytes = 0
        self.problems = []

    def good(self, size):
        with self._lock:
            self.requests += 1
            self.bytes += size

    def bad(self, text):
        with self._lock:
            self.problems.append(text)


def connect(address, source_port, host):
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.settimeout(10)
    if source_port:
        sock.bind(("0.0.0.0", source_port))
    sock.connect(address)
    connection = http.client.HTTPConnection(host)
    connection.sock = sock
    return connection


def talk(address, source_port, host, bodies, until, tally):
    where = f"{address[0]}:{address[1]} from port {source_port}"
    try:
        connection = connect(address, source_port, host)
        done = 0
        while done < len(bodies) or time.monotonic() < until:
            name, expected = bodies[done % len(bodies)]
            connection.request("GET", f"/{name}", headers={"Connection": "keep-alive"})
            response = connection.getresponse()
            body = response.read()
            if response.status != 200 or sha256(body) != expected:
                tally.bad(f"{where}: /{name}: status {response.status}, {len(body)} bytes, "
                          f"sha256 {sha256(body)[:12]}, expected {expected[:12]}")
                return
            tally.good(len(body))
            done += 1
        connection.close()
    except (OSError, http.client.HTTPException) as error:
        tally.bad(f"{where}: {type(error).__name__}: {error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="IP:PORT to connect to")
    parser.add_argument("--host", default="app.demo", help="Host header")
    parser.add_argument("--bodies", required=True, type=pathlib.Path,
                        help="directory of the files that must come back")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--first-port", type=int, default=0,
                        help="source port of the first connection; 0: any")
    parser.add_argument("--seconds", type=float, default=0, help="at least each body once")
    args = parser.parse_args()

    bodies = [(path.name, sha256(path.read_bytes())) for path in sorted(args.bodies.iterdir())]
    ip, port = args.address.rsplit(":", 1)
    until = time.monotonic() + args.seconds
    tally = Tally()
    threads = [
        threading.Thread(target=talk, args=(
            (ip, int(port)), args.first_port and args.first_port + i, args.host,
            bodies[i % len(bodies):] + bodies[:i % len(bodies)], until, tally))
        for i in range(args.connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"address": args.address, "connections": args.connections,
                      "requests": tally.requests, "bytes": tally.bytes,
                      "problems": tally.problems}))
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
