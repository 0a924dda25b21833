// An independent opinion for tests/interop/test_boxo.py: the Go implementation that Kubo is made of.
//
// It answers JSON requests, one a line on standard input, with JSON answers, one a line on standard output.
// Content is always bytes(i % 251 for i in range(size)), so that both sides can make it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/exchange/offline"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	ipld "github.com/ipfs/go-ipld-format"
	car "github.com/ipld/go-car/v2"
	"github.com/ipld/go-car/v2/storage"
	"github.com/multiformats/go-multihash"
)

type profile struct {
	CidVersion        uint64 `json:"cid_version"`
	ChunkSize         int64  `json:"chunk_size"`
	MaxLinks          int    `json:"max_links"`
	RawLeaves         bool   `json:"raw_leaves"`
	DirectoryEstimate string `json:"directory_estimate"`
	ShardingThreshold int    `json:"sharding_threshold"`
	ShardFanout       int    `json:"shard_fanout"`
}

func (p profile) builder() cid.Builder {
	return cid.Prefix{Version: p.CidVersion, Codec: cid.DagProtobuf, MhType: multihash.SHA2_256, MhLength: -1}
}

type entry struct {
	Name string `json:"name"`
	Size int    `json:"size"`
}

type request struct {
	Op      string  `json:"op"`
	Profile profile `json:"profile"`
	Size    int     `json:"size"`
	Entries []entry `json:"entries"`
	Car     string  `json:"car"`
	Version int     `json:"version"`
	Root    string  `json:"root"`
}

type answer struct {
	Error   string            `json:"error,omitempty"`
	Cid     string            `json:"cid,omitempty"`
	Tsize   uint64            `json:"tsize"`
	Blocks  int               `json:"blocks"`
	Sharded bool              `json:"sharded"`
	Roots   []string          `json:"roots,omitempty"`
	Cids    []string          `json:"cids,omitempty"`
	Entries map[string]string `json:"entries,omitempty"`
	Size    int64             `json:"size"`
	Sha256  string            `json:"sha256,omitempty"`
}

// A fresh place for the blocks of one request.
type place struct {
	store blockstore.Blockstore
	dag   ipld.DAGService
}

func newPlace() place {
	store := blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
	store = blockstore.NewIdStore(store)
	return place{store, merkledag.NewDAGService(blockservice.New(store, offline.Exchange(store)))}
}

func content(size int) []byte {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i % 251)
	}
	return data
}

func (p place) addFile(settings profile, size int) (ipld.Node, error) {
	params := helpers.DagBuilderParams{
		Maxlinks:   settings.MaxLinks,
		RawLeaves:  settings.RawLeaves,
		CidBuilder: settings.builder(),
		Dagserv:    p.dag,
	}
	helper, err := params.New(chunk.NewSizeSplitter(bytes.NewReader(content(size)), settings.ChunkSize))
	if err != nil {
		return nil, err
	}
	return balanced.Layout(helper)
}

func (p place) addDirectory(ctx context.Context, settings profile, entries []entry) (ipld.Node, error) {
	estimate := uio.SizeEstimationBlock
	if settings.DirectoryEstimate == "links-bytes" {
		estimate = uio.SizeEstimationLinks
	}
	directory, err := uio.NewDirectory(p.dag,
		uio.WithCidBuilder(settings.builder()),
		uio.WithSizeEstimationMode(estimate),
		uio.WithMaxHAMTFanout(settings.ShardFanout))
	if err != nil {
		return nil, err
	}
	directory.SetHAMTShardingSize(settings.ShardingThreshold)
	uio.HAMTShardingSize = settings.ShardingThreshold
	uio.HAMTSizeEstimation = estimate
	uio.DefaultShardWidth = settings.ShardFanout
	for _, entry := range entries {
		file, err := p.addFile(settings, entry.Size)
		if err != nil {
			return nil, err
		}
		if err := directory.AddChild(ctx, entry.Name, file); err != nil {
			return nil, err
		}
	}
	return directory.GetNode()
}

func (p place) described(node ipld.Node) (answer, error) {
	if err := p.dag.Add(context.Background(), node); err != nil {
		return answer{}, err
	}
	size, err := node.Size()
	if err != nil {
		return answer{}, err
	}
	keys, err := p.store.AllKeysChan(context.Background())
	if err != nil {
		return answer{}, err
	}
	result := answer{Cid: node.Cid().String(), Tsize: size}
	for range keys {
		result.Blocks++
	}
	if proto, ok := node.(*merkledag.ProtoNode); ok {
		message, err := unixfs.FSNodeFromBytes(proto.Data())
		if err != nil {
			return answer{}, err
		}
		result.Sharded = message.Type() == unixfs.THAMTShard
	}
	return result, nil
}

// Every block of the CAR, each checked against its CID by go-car.
func (p place) load(ctx context.Context, path string) (answer, error) {
	file, err := os.Open(path)
	if err != nil {
		return answer{}, err
	}
	defer file.Close()
	reader, err := car.NewBlockReader(file)
	if err != nil {
		return answer{}, err
	}
	result := answer{}
	for _, root := range reader.Roots {
		result.Roots = append(result.Roots, root.String())
	}
	for {
		block, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return result, nil
		}
		if err != nil {
			return answer{}, err
		}
		result.Cids = append(result.Cids, block.Cid().String())
		if err := p.store.Put(ctx, block); err != nil {
			return answer{}, err
		}
	}
}

func (p place) writeCar(ctx context.Context, asked request) (answer, error) {
	node, err := p.addFile(asked.Profile, asked.Size)
	if err != nil {
		return answer{}, err
	}
	result, err := p.described(node)
	if err != nil {
		return answer{}, err
	}
	file, err := os.Create(asked.Car)
	if err != nil {
		return answer{}, err
	}
	defer file.Close()
	out, err := storage.NewReadableWritable(file, []cid.Cid{node.Cid()}, car.WriteAsCarV1(asked.Version == 1))
	if err != nil {
		return answer{}, err
	}
	todo := []cid.Cid{node.Cid()}
	for len(todo) > 0 {
		block, err := p.dag.Get(ctx, todo[0])
		if err != nil {
			return answer{}, err
		}
		todo = todo[1:]
		if err := out.Put(ctx, block.Cid().KeyString(), block.RawData()); err != nil {
			return answer{}, err
		}
		for _, link := range block.Links() {
			todo = append(todo, link.Cid)
		}
	}
	return result, out.Finalize()
}

func (p place) list(ctx context.Context, root string) (answer, error) {
	node, err := p.get(ctx, root)
	if err != nil {
		return answer{}, err
	}
	directory, err := uio.NewDirectoryFromNode(p.dag, node)
	if err != nil {
		return answer{}, err
	}
	result := answer{Entries: map[string]string{}}
	err = directory.ForEachLink(ctx, func(link *ipld.Link) error {
		result.Entries[link.Name] = link.Cid.String()
		return nil
	})
	if err != nil {
		return answer{}, err
	}
	for name, want := range result.Entries {
		found, err := directory.Find(ctx, name)
		if err != nil {
			return answer{}, fmt.Errorf("%q is listed and not found: %w", name, err)
		}
		if found.Cid().String() != want {
			return answer{}, fmt.Errorf("%q is listed as %s and found as %s", name, want, found.Cid())
		}
	}
	return result, nil
}

func (p place) cat(ctx context.Context, root string) (answer, error) {
	node, err := p.get(ctx, root)
	if err != nil {
		return answer{}, err
	}
	reader, err := uio.NewDagReader(ctx, node, p.dag)
	if err != nil {
		return answer{}, err
	}
	defer reader.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, reader)
	return answer{Size: size, Sha256: hex.EncodeToString(hash.Sum(nil))}, err
}

func (p place) get(ctx context.Context, root string) (ipld.Node, error) {
	id, err := cid.Decode(root)
	if err != nil {
		return nil, err
	}
	return p.dag.Get(ctx, id)
}

func respond(ctx context.Context, asked request) (answer, error) {
	here := newPlace()
	switch asked.Op {
	case "file":
		node, err := here.addFile(asked.Profile, asked.Size)
		if err != nil {
			return answer{}, err
		}
		return here.described(node)
	case "directory":
		node, err := here.addDirectory(ctx, asked.Profile, asked.Entries)
		if err != nil {
			return answer{}, err
		}
		return here.described(node)
	case "write-car":
		return here.writeCar(ctx, asked)
	}
	loaded, err := here.load(ctx, asked.Car)
	if err != nil {
		return answer{}, err
	}
	switch asked.Op {
	case "read-car":
		return loaded, nil
	case "list":
		return here.list(ctx, asked.Root)
	case "cat":
		return here.cat(ctx, asked.Root)
	}
	return answer{}, fmt.Errorf("there is no operation %q", asked.Op)
}

func main() {
	lines := bufio.NewReader(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var asked request
		var result answer
		if err = json.Unmarshal(line, &asked); err == nil {
			result, err = respond(context.Background(), asked)
		}
		if err != nil {
			result = answer{Error: err.Error()}
		}
		if err := answers.Encode(result); err != nil {
			return
		}
	}
}
