// SPDX-License-Identifier: Apache-2.0
//
// Reads as programs do that never want to block: no more than available() says,
// and nothing while it says 0. Slower than the sender, so that there is
// back-pressure. Eight bytes of length, then as many bytes; answers their SHA-256.
//
//   java AvailableReader.java PORT

import java.io.DataInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.security.MessageDigest;
import java.util.HexFormat;

public class AvailableReader {
    static final int BYTES_PER_PAUSE = 1 << 20;

    static void await(InputStream in, int bytes) throws IOException, InterruptedException {
        while (in.available() < bytes) {
            Thread.sleep(1);
        }
    }

    static String digest(InputStream in, long size) throws Exception {
        MessageDigest sha256 = MessageDigest.getInstance("SHA-256");
        byte[] buffer = new byte[64 * 1024];
        long pause = BYTES_PER_PAUSE;
        for (long got = 0; got < size; ) {
            await(in, 1);
            long most = Math.min(Math.min(in.available(), buffer.length), size - got);
            int n = in.read(buffer, 0, (int) most);
            sha256.update(buffer, 0, n);
            got += n;
            if (got >= pause) {
                pause += BYTES_PER_PAUSE;
                Thread.sleep(20);
                System.out.println("read " + got);
            }
        }
        return HexFormat.of().formatHex(sha256.digest());
    }

    public static void main(String[] arguments) throws Exception {
        int port = Integer.parseInt(arguments[0]);
        try (ServerSocket listener = new ServerSocket(port, 16, InetAddress.getByName("127.0.0.1"))) {
            while (true) {
                try (Socket socket = listener.accept()) {
                    Thread.sleep(300); // until the sender has to wait
                    InputStream in = socket.getInputStream();
                    await(in, 8);
                    long size = new DataInputStream(in).readLong();
                    socket.getOutputStream().write(digest(in, size).getBytes());
                }
            }
        }
    }
}
