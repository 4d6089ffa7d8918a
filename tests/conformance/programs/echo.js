// SPDX-License-Identifier: Apache-2.0
// Node.js streams: echoes with pipe(), which pauses and resumes: echo.js PORT
require('net').createServer({allowHalfOpen: true}, (socket) => socket.pipe(socket))
    .listen(Number(process.argv[2]), '127.0.0.1');
