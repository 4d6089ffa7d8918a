#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The other side of the program under test; every verb prints the SHA-256 that its
test compares.

  upload PORT FILE           eight bytes of length, then the file; prints the answer;
                             --threads: one thread sends while another one receives
  echo PORT FILE             the same to `sink --echo`; prints the SHA-256 of what
                             comes back
  put PORT PATH FILE         HTTP PUT in bursts with pauses; prints the answer's body
  sink PORT [--echo]         server of the two; a slow reader; answers the SHA-256
  http-sink PORT SECONDS     HTTP server that takes SECONDS to read each request's
                             body; answers its SHA-256
  redis PORT COUNT SIZE      pipelines SETs, then GETs, then GETs whose replies are
                             read late; prints "equal" and the SHA-256 of the replies
"""

import argparse
import hashlib
import http.client
import pathlib
import random
import select
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


def serve_each(listener, serve):
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


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


def exchange(sock, request, size):
    """Sends and receives at the same time, by poll(), as event loops do."""
    sock.setblocking(False)
    poll = select.poll()
    left, parts = memoryview(request), []
    while size:
        poll.register(sock, select.POLLIN | (select.POLLOUT if left else 0))
        ((_, events),) = poll.poll()
        if events & select.POLLOUT and left:
            left = left[sock.send(left[:CHUNK]):]
        if events & ~select.POLLOUT:
            part = sock.recv(min(CHUNK, size))
            if not part:
                raise EOFError(f"end of stream, {size} bytes early")
            parts.append(part)
            size -= len(part)
    sock.setblocking(True)
    return b"".join(parts)


def framed(file):
    body = file.read_bytes()
    return body, struct.pack(">Q", len(body)) + body


def upload(args):
    request = framed(args.file)[1]
    with dial(args.port) as sock:
        if args.threads:
            threading.Thread(target=sock.sendall, args=(request,), daemon=True).start()
        else:
            sock.sendall(request)
        print(read_all(sock).decode())


def echo(args):
    body, request = framed(args.file)
    with dial(args.port) as sock:
        print(hashlib.sha256(exchange(sock, request, len(body))).hexdigest())


def sink(args):
    def serve(sock):
        with sock:
            (size,) = struct.unpack(">Q", read_exactly(sock, 8))
            time.sleep(0.3)  # until the sender has to wait
            left = size
            received = hashlib.sha256()
            while left:
                part = read_exactly(sock, min(left, CHUNK))
                received.update(part)
                left -= len(part)
                if args.echo:
                    sock.sendall(part)
                elif left // CHUNK % 16 == 0:
                    time.sleep(0.01)
            if not args.echo:
                sock.sendall(received.hexdigest().encode())

    serve_each(listen(args.port), serve)


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

    serve_each(listen(args.port), serve)


def command(*words):
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def redis(args):
    values = [random.Random(number).randbytes(args.size) for number in range(args.count)]
    keys = [b"key:%d" % number for number in range(args.count)]
    replies = b"".join(b"$%d\r\n%s\r\n" % (len(value), value) for value in values)

    def pipeline(request, reply):
        got = exchange(sock, request, len(reply))
        if got != reply:
            at = next(i for i, pair in enumerate(zip(got, reply)) if pair[0] != pair[1])
            raise SystemExit(f"replies differ at byte {at}: {got[at:at + 40]!r}, "
                             f"expected {reply[at:at + 40]!r}")
        return hashlib.sha256(got).hexdigest()

    sets = b"".join(command(b"SET", *pair) for pair in zip(keys, values))
    gets = b"".join(command(b"GET", key) for key in keys)
    with dial(args.port) as sock:
        pipeline(sets, b"+OK\r\n" * args.count)
        print("equal", pipeline(gets, replies), flush=True)
        # Replies that nobody reads for a while.
        sock.sendall(gets)
        time.sleep(0.3)
        print("equal", pipeline(b"", replies))


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

    verb("upload", upload, ("file", pathlib.Path)).add_argument("--threads", action="store_true")
    verb("echo", echo, ("file", pathlib.Path))
    verb("sink", sink).add_argument("--echo", action="store_true")
    verb("put", put, ("path", str), ("file", pathlib.Path))
    verb("http-sink", http_sink, ("seconds", float))
    verb("redis", redis, ("count", int), ("size", int))
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
