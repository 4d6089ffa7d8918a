#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The other side of the program under test; every verb prints the SHA-256 that its
test compares.

  upload PORT FILE [--echo]  eight bytes of length, then the file; prints the answer,
                             with --echo the SHA-256 of as many bytes that come back
  put PORT PATH FILE         HTTP PUT in bursts with pauses; prints the answer's body
  echo-sink PORT             server of `upload --echo`
  http-sink PORT SECONDS     HTTP server that takes SECONDS to read each request's
                             body; answers its SHA-256
  redis PORT COUNT SIZE      pipelines SETs, then GETs whose replies are read late;
                             prints "equal" and the SHA-256
"""

import argparse
import hashlib
import http.client
import pathlib
import random
import socket
import struct
import threading
import time

CHUNK = 64 * 1024


def dial(port):
    return socket.create_connection(("127.0.0.1", port))


def listen(port):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(16)
    return listener


def read_all(sock):
    return b"".join(iter(lambda: sock.recv(CHUNK), b""))


def read_exactly(sock, size):
    parts = []
    while size:
        part = sock.recv(min(CHUNK, size))
        if not part:
            raise EOFError(f"end of stream, {size} bytes early")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def upload(args):
    body = args.file.read_bytes()
    with dial(args.port) as sock:
        sender = threading.Thread(
            target=lambda: sock.sendall(struct.pack(">Q", len(body)) + body), daemon=True)
        sender.start()
        if args.echo:
            print(hashlib.sha256(read_exactly(sock, len(body))).hexdigest())
        else:
            print(read_all(sock).decode())


def echo_sink(args):
    def serve(sock):
        with sock:
            (size,) = struct.unpack(">Q", read_exactly(sock, 8))
            time.sleep(0.3)  # until the sender has to wait
            left = size
            echoed = hashlib.sha256()
            while left:  # sends back while it still reads
                part = read_exactly(sock, min(left, CHUNK))
                echoed.update(part)
                sock.sendall(part)
                left -= len(part)
            print(size, echoed.hexdigest(), flush=True)

    listener = listen(args.port)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def put(args):
    body = args.file.read_bytes()
    burst = max(len(body) // 16, 1)
    connection = http.client.HTTPConnection("127.0.0.1", args.port)
    connection.putrequest("PUT", args.path)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    for start in range(0, len(body), burst):
        connection.send(body[start:start + burst])
        time.sleep(0.02)
    response = connection.getresponse()
    answer = response.read().decode()
    if response.status not in (200, 201, 204):
        raise SystemExit(f"status {response.status}: {answer}")
    print(answer)


def read_head(sock):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            return None
        head += byte
    return {name.strip().lower(): value.strip() for name, _, value in (
        line.partition(":") for line in head.decode().split("\r\n")[1:] if line)}


def http_sink(args):
    def serve(sock):
        with sock:
            head = read_head(sock)
            if head is None:
                return
            size = int(head["content-length"])
            received = hashlib.sha256()
            start, got = time.monotonic(), 0
            while got < size:
                part = sock.recv(CHUNK)
                if not part:
                    print(f"end of stream after {got} of {size} bytes", flush=True)
                    return
                received.update(part)
                got += len(part)
                time.sleep(max(0, start + args.seconds * got / size - time.monotonic()))
            sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 64\r\n\r\n"
                         + received.hexdigest().encode())

    listener = listen(args.port)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def command(*words):
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def redis(args):
    values = [random.Random(number).randbytes(args.size) for number in range(args.count)]
    keys = [b"key:%d" % number for number in range(args.count)]
    replies = b"".join(b"$%d\r\n%s\r\n" % (len(value), value) for value in values)

    def exchange(request, reply, pause):
        sender = threading.Thread(target=sock.sendall, args=(request,), daemon=True)
        sender.start()
        time.sleep(pause)
        got = read_exactly(sock, len(reply))
        if got != reply:
            at = next(i for i, pair in enumerate(zip(got, reply)) if pair[0] != pair[1])
            raise SystemExit(f"replies differ at byte {at}: {got[at:at + 40]!r}, "
                             f"expected {reply[at:at + 40]!r}")
        return hashlib.sha256(got).hexdigest()

    with dial(args.port) as sock:
        exchange(b"".join(command(b"SET", *pair) for pair in zip(keys, values)),
                 b"+OK\r\n" * args.count, 0)
        for pause in (0, 0.3):
            digest = exchange(b"".join(command(b"GET", key) for key in keys), replies, pause)
    print("equal", digest)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)

    def verb(name, run, *arguments):
        added = verbs.add_parser(name)
        added.set_defaults(run=run)
        added.add_argument("port", type=int)
        for argument, kind in arguments:
            added.add_argument(argument, type=kind)
        return added

    verb("upload", upload, ("file", pathlib.Path)).add_argument("--echo", action="store_true")
    verb("put", put, ("path", str), ("file", pathlib.Path))
    verb("echo-sink", echo_sink)
    verb("http-sink", http_sink, ("seconds", float))
    verb("redis", redis, ("count", int), ("size", int))
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
