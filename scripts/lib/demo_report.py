#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of scripts/demo: reads wrk and shuntctl, judges, prints tables.

  check    one run of pod_check.py: keeps its result
  snapshot the agent's status (standard input) and Envoy's byte counters, as JSON
  turn     one run of wrk between two snapshots: keeps its figures; exits 1 unless
           a plain turn redirected nothing and an accelerated one redirected both
           hops
  summary  medians and ratios of all turns
"""

import argparse
import http.client
import json
import os
import pathlib
import re
import socket
import statistics
import sys

SECONDS_OF_UNIT = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

# Of the bytes that Envoy received and sent, on both sides of it. One hop alone
# is about half of them.
MIN_SHARE = 0.9
ENVOY_COUNTERS = (
    "http.outbound.downstream_cx_rx_bytes_total", "http.outbound.downstream_cx_tx_bytes_total",
    "cluster.app.upstream_cx_rx_bytes_total", "cluster.app.upstream_cx_tx_bytes_total")


class Failure(Exception):
    """The demo shows something that must not be."""


# ---- wrk ---------------------------------------------------------------------


def parse_wrk(text):
    def number(pattern, default=None):
        match = re.search(pattern, text, re.MULTILINE)
        if match:
            return float(match.group(1))
        if default is None:
            raise Failure(f"wrk's output has no match for {pattern!r}:\n{text}")
        return default

    def percentile(percent):
        match = re.search(rf"^\s*{percent}%\s+([\d.]+)(us|ms|s|m|h)\s*$", text, re.MULTILINE)
        if not match:
            raise Failure(f"wrk's output has no {percent}th percentile:\n{text}")
        return float(match.group(1)) * SECONDS_OF_UNIT[match.group(2)]

    requests = number(r"^\s*(\d+) requests in ")
    rate = number(r"^Requests/sec:\s+([\d.]+)")
    errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    return {
        "requests": int(requests),
        "rps": rate,
        "p50_s": percentile(50),
        "p99_s": percentile(99),
        "bad_status": int(number(r"Non-2xx or 3xx responses: (\d+)", 0)),
        "socket_errors": sum(map(int, errors.groups())) if errors else 0,
    }


# ---- one turn ------------------------------------------------------------------


def envoy_bytes(admin_socket, names=ENVOY_COUNTERS):
    """Bytes of both hops, each direction once: what Envoy has received and sent."""
    connection = http.client.HTTPConnection("envoy")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(admin_socket)
    connection.request("GET", "/stats?format=json&filter=cx_[rt]x_bytes_total")
    counters = {entry["name"]: entry["value"]
                for entry in json.load(connection.getresponse())["stats"] if "name" in entry}
    return sum(counters[name] for name in names)


def take_snapshot(args):
    print(json.dumps({"status": json.load(sys.stdin), "hopBytes": envoy_bytes(args.sidecar)}))


def difference(before, after):
    """What two snapshots differ by."""
    old = before["status"]["fallbacks"]
    grown = {reason: count - old.get(reason, 0)
             for reason, count in after["status"]["fallbacks"].items()}
    return {
        "redirected_bytes": after["status"]["redirectedBytes"] - before["status"]["redirectedBytes"],
        "hop_bytes": after["hopBytes"] - before["hopBytes"],
        "fallbacks": {reason: count for reason, count in grown.items() if count},
    }


def judge(turn):
    where = f"{turn['size']} B, {turn['mode']}"
    if turn["socket_errors"] or turn["bad_status"]:
        raise Failure(f"{where}: {turn['socket_errors']} socket errors and "
                      f"{turn['bad_status']} bad responses, expected none")
    if turn["mode"] == "plain" and turn["redirected_bytes"]:
        raise Failure(f"{where}: {turn['redirected_bytes']} bytes were redirected, expected none")
    if turn["mode"] == "accelerated" and turn["share"] < MIN_SHARE:
        raise Failure(f"{where}: {turn['redirected_bytes']} bytes were redirected, "
                      f"{turn['share']:.0%} of what passed both hops, "
                      f"expected at least {MIN_SHARE:.0%}; fallbacks: {turn['fallbacks']}")


def record_turn(args):
    turn = {"size": args.size, "mode": args.mode}
    turn.update(parse_wrk(args.wrk.read_text()))
    turn.update(difference(json.loads(args.before.read_text()), json.loads(args.after.read_text())))
    turn["share"] = turn["redirected_bytes"] / turn["hop_bytes"]
    append_line(args.runs, turn)
    judge(turn)
    print(f"{args.size:>6} B {args.mode:<11} {turn['rps']:>8.0f} requests/s  "
          f"p50 {1e3 * turn['p50_s']:6.2f} ms  p99 {1e3 * turn['p99_s']:6.2f} ms  "
          f"redirected {bytes_text(turn['redirected_bytes'])} ({turn['share']:.1%})")


# ---- all turns -------------------------------------------------------------------


def medians(turns):
    return {key: statistics.median(turn[key] for turn in turns)
            for key in ("rps", "p50_s", "p99_s", "share")}


def add_up(counts):
    total = {}
    for count in counts:
        for reason, number in count.items():
            total[reason] = total.get(reason, 0) + number
    return total


def summarise(turns, size):
    of_size = [turn for turn in turns if turn["size"] == size]
    plain = [turn for turn in of_size if turn["mode"] == "plain"]
    accelerated = [turn for turn in of_size if turn["mode"] == "accelerated"]
    row = {
        "size": size,
        "plain": medians(plain),
        "accelerated": medians(accelerated),
        "redirected_bytes": sum(turn["redirected_bytes"] for turn in accelerated),
        "requests": sum(turn["requests"] for turn in accelerated),
        "fallbacks": add_up(turn["fallbacks"] for turn in accelerated),
    }
    row["ratio"] = {key: row["accelerated"][key] / row["plain"][key]
                    for key in ("rps", "p50_s", "p99_s")}
    return row


def bytes_text(count):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024


def print_table(rows):
    head = (f"{'':>8} | {'requests/s':^26} | {'p50 ms':^22} | {'p99 ms':^22} | redirected, share",
            f"{'body':>8} | {'plain':>8} {'accel.':>8} {'ratio':>8} | "
            + f"{'plain':>6} {'accel.':>7} {'ratio':>7} | " * 2 + f"{'bytes':>10}")
    print(*head, "-" * len(head[1]), sep="\n")
    for row in rows:
        plain, fast, ratio = row["plain"], row["accelerated"], row["ratio"]
        print(f"{row['size']:>6} B | {plain['rps']:>8.0f} {fast['rps']:>8.0f} "
              f"{ratio['rps']:>8.2f} | "
              + "".join(f"{1e3 * plain[key]:>6.2f} {1e3 * fast[key]:>7.2f} {ratio[key]:>7.2f} | "
                        for key in ("p50_s", "p99_s"))
              + f"{bytes_text(row['redirected_bytes']):>10} {fast['share']:>6.1%}")


def print_fallbacks(rows):
    print("\nMessages that went by TCP in accelerated turns, by reason:")
    for row in rows:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(
            row["fallbacks"].items(), key=lambda item: -item[1]))
        print(f"{row['size']:>6} B | {reasons or 'none'}   (in {row['requests']} requests)")


def print_checks(checks):
    print("\nBodies compared (SHA-256), accelerated:")
    for check in sorted(checks, key=lambda check: (check["pod"], check["what"])):
        verdict = "all equal" if not check["problems"] else "; ".join(check["problems"])
        print(f"  {check['pod']} {check['what']}: {check['requests']} bodies, "
              f"{bytes_text(check['bytes'])}, {check['connections']} connections: {verdict}")


def summary(args):
    turns, checks = read_lines(args.runs), read_lines(args.checks)
    rows = [summarise(turns, size) for size in sorted({turn["size"] for turn in turns})]
    print(f"\nwrk -> REDIRECT -> Envoy -> nginx in one pod, {args.connections} connections, "
          f"medians of {len(turns) // len(rows) // 2} turns of {args.seconds} s each, "
          f"kernel {os.uname().release}, {os.cpu_count()} CPUs\n")
    print_table(rows)
    print_fallbacks(rows)
    print_checks(checks)
    if args.json:
        args.json.write_text(json.dumps({
            "kernel": os.uname().release, "cpus": os.cpu_count(),
            "connections": args.connections, "secondsPerTurn": args.seconds,
            "summary": rows, "turns": turns, "checks": checks,
            "status": json.loads(args.status.read_text()),
        }, indent=1) + "\n")


# ---- files -----------------------------------------------------------------------


def append_line(path, value):
    # One write of one line: several checks append at the same time.
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def record_check(args):
    if not args.result:
        raise Failure(f"{args.pod} {args.what}: no result")
    check = {"pod": args.pod, "what": args.what, **json.loads(args.result)}
    append_line(args.checks, check)
    if check["problems"]:
        raise Failure(f"{args.pod} {args.what}: " + "\n  ".join(check["problems"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)

    check = verbs.add_parser("check")
    check.add_argument("--checks", type=pathlib.Path, required=True)
    check.add_argument("--pod", required=True)
    check.add_argument("--what", required=True)
    check.add_argument("--result", required=True)
    check.set_defaults(run=record_check)

    snapshot = verbs.add_parser("snapshot")
    snapshot.add_argument("--sidecar", required=True, help="Unix socket of Envoy's admin interface")
    snapshot.set_defaults(run=take_snapshot)

    turn = verbs.add_parser("turn")
    turn.add_argument("--runs", type=pathlib.Path, required=True)
    turn.add_argument("--size", type=int, required=True)
    turn.add_argument("--mode", choices=("plain", "accelerated"), required=True)
    for file in ("--wrk", "--before", "--after"):
        turn.add_argument(file, type=pathlib.Path, required=True)
    turn.set_defaults(run=record_turn)

    total = verbs.add_parser("summary")
    total.add_argument("--runs", type=pathlib.Path, required=True)
    total.add_argument("--checks", type=pathlib.Path, required=True)
    total.add_argument("--status", type=pathlib.Path, required=True)
    total.add_argument("--connections", type=int, required=True)
    total.add_argument("--seconds", type=int, required=True)
    total.add_argument("--json", type=pathlib.Path)
    total.set_defaults(run=summary)

    args = parser.parse_args()
    try:
        args.run(args)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
