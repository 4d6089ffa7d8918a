# SPDX-License-Identifier: Apache-2.0
"""scripts/bench: ratios to plain TCP, all from one run."""

import argparse
import json
import pathlib
import signal
import sys
import time

from demo import demo_group
from node import Failure, Node, exclusive
from report import Table, machine
from rows import FULL, QUICK, Bench

GROUPS = ("agent", "rtt", "mixed", "stream", "unread", "footprint", "demo")


def parse_arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--binaries", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="under four minutes; rougher")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE",
                        help="also write every figure and slice")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP",
                        help=f"measure these only: {', '.join(GROUPS)}")
    return parser.parse_args()


def measure(args, table):
    plan = QUICK if args.quick else FULL
    if set(args.only) - {"demo"}:
        with Node(args.binaries, args.binaries / "hop") as node:
            bench = Bench(node, table, plan)
            bench.run(args.only)
            status = node.agent.status()
            print(f"\nengine: {status['engine']} ({status['engineReason']})", flush=True)
    if "demo" in args.only:
        demo_group(table, args.binaries, args.quick)


def main():
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    began = time.monotonic()
    where = machine()
    print(f"{where['kernel']}, {where['cpus']} CPUs, {where['model']}, load {where['load']:.2f}; "
          "plain and accelerated slices alternate, figure = median of ratios of neighbours\n")
    table = Table()
    table.head()
    failure = None
    try:
        with exclusive():
            measure(args, table)
    except Failure as error:
        failure = str(error)
    except KeyboardInterrupt:
        return 130
    unmeasured = table.verdicts()
    print(f"{time.monotonic() - began:.0f} s")
    if args.json:
        args.json.write_text(json.dumps({
            "machine": where, "quick": args.quick, "failure": failure,
            "rows": [row.as_json() for row in table.rows]}, indent=1) + "\n")
    if failure:
        print(f"bench: {failure}", file=sys.stderr)
    return 1 if failure or unmeasured else 0


if __name__ == "__main__":
    sys.exit(main())
