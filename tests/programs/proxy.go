// SPDX-License-Identifier: Apache-2.0

// A TCP proxy as most Go programs have one: io.Copy between two connections,
// which Go carries out by splice(2).
//
//	proxy LISTEN DIAL
package main

import (
	"io"
	"log"
	"net"
	"os"
	"sync"
)

func pipe(to, from *net.TCPConn, done *sync.WaitGroup) {
	defer done.Done()
	if _, err := io.Copy(to, from); err != nil {
		log.Printf("copying %v to %v: %v", from.RemoteAddr(), to.RemoteAddr(), err)
	}
	to.CloseWrite()
}

func serve(client *net.TCPConn, address string) {
	defer client.Close()
	server, err := net.Dial("tcp", address)
	if err != nil {
		log.Print(err)
		return
	}
	defer server.Close()
	var done sync.WaitGroup
	done.Add(2)
	go pipe(server.(*net.TCPConn), client, &done)
	go pipe(client, server.(*net.TCPConn), &done)
	done.Wait()
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(client.(*net.TCPConn), os.Args[2])
	}
}
