// SPDX-License-Identifier: Apache-2.0

// Copies between two TCP connections with io.Copy, which uses splice() on Linux.
//
//	proxy LISTEN DIAL
package main

import (
	"io"
	"net"
	"os"
)

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		panic(err)
	}
	for {
		in, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			out, err := net.Dial("tcp", os.Args[2])
			if err != nil {
				panic(err)
			}
			go func() {
				io.Copy(out, in)
				out.(*net.TCPConn).CloseWrite()
			}()
			io.Copy(in, out)
			in.(*net.TCPConn).CloseWrite()
		}()
	}
}
