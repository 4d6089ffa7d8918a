// SPDX-License-Identifier: Apache-2.0
//
// Reads with pause() and resume(), slower than the sender, so that there is
// back-pressure. Eight bytes of length, then as many bytes; answers their SHA-256.
//
//   node paused_reader.js PORT
'use strict';

const crypto = require('crypto');
const net = require('net');

const BYTES_PER_PAUSE = 256 * 1024;

net.createServer((socket) => {
  const sha256 = crypto.createHash('sha256');
  let header = Buffer.alloc(0);
  let left = -1n;
  let unpaused = 0;

  socket.pause();
  setTimeout(() => socket.resume(), 300); // until the sender has to wait
  socket.on('data', (chunk) => {
    if (left < 0n) {
      header = Buffer.concat([header, chunk]);
      if (header.length < 8) {
        return;
      }
      left = header.readBigUInt64BE();
      chunk = header.subarray(8);
    }
    sha256.update(chunk);
    left -= BigInt(chunk.length);
    if (left === 0n) {
      socket.end(sha256.digest('hex'));
      return;
    }
    unpaused += chunk.length;
    if (unpaused >= BYTES_PER_PAUSE) {
      unpaused = 0;
      socket.pause();
      setTimeout(() => socket.resume(), 5);
    }
  });
  socket.on('error', (error) => console.error(error.message));
}).listen(Number(process.argv[2]), '127.0.0.1');
