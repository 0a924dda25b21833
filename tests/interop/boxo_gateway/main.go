// Boxo's gateway, the one inside Kubo, over the blocks of a CAR file: the other side of test_boxo_gateway.py.
//
// It prints its address once it listens, and ends when its standard input does. It has no network: blocks
// that the CAR does not hold are not found.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/exchange/offline"
	"github.com/ipfs/boxo/gateway"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	car "github.com/ipld/go-car/v2"
	"github.com/prometheus/client_golang/prometheus"
)

func fill(store blockstore.Blockstore, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	reader, err := car.NewBlockReader(file)
	if err != nil {
		return err
	}
	for {
		block, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := store.Put(context.Background(), block); err != nil {
			return err
		}
	}
}

func run() error {
	store := blockstore.NewIdStore(blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore())))
	if err := fill(store, os.Args[1]); err != nil {
		return err
	}
	backend, err := gateway.NewBlocksBackend(blockservice.New(store, offline.Exchange(store)))
	if err != nil {
		return err
	}
	config := gateway.Config{
		DeserializedResponses: true,
		DeprecatedXIpfsPath:   true,
		MetricsRegistry:       prometheus.NewRegistry(),
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return http.Serve(listener, gateway.NewHandler(config, backend))
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
