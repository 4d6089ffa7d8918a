// SPDX-License-Identifier: Apache-2.0

import java.io.InputStream;
import java.net.Socket;

/** Reads only what InputStream.available() (FIONREAD) promises: Available HOST PORT BYTES. */
public class Available {
  public static void main(String[] arguments) throws Exception {
    try (Socket socket = new Socket(arguments[0], Integer.parseInt(arguments[1]))) {
      long wanted = Long.parseLong(arguments[2]);
      socket.getOutputStream().write("go\n".getBytes());
      InputStream in = socket.getInputStream();
      byte[] buffer = new byte[65536];
      long done = 0, hash = 17;
      long end = System.currentTimeMillis() + 5000;
      while (done < wanted && System.currentTimeMillis() < end) {
        int there = in.available();
        if (there == 0) {
          Thread.sleep(1);
          continue;
        }
        int got = in.read(buffer, 0, Math.min(there, buffer.length));
        for (int i = 0; i < got; i++) {
          hash = hash * 31 + buffer[i];
        }
        done += got;
      }
      System.out.println(done == wanted ? "all, hash " + hash : "available() says 0 after a part");
    }
  }
}
