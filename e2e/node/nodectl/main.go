// Command nodectl is the tests' hand in a node: it makes one CRI call on a unix socket, or one HTTP request, and hands
// the answer back as it came. It knows no message of CRI; whoever calls it does. Small enough to be copied to each node.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/virtlet/virtlet/e2e/node"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "nodectl:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "call":
		request, err := io.ReadAll(os.Stdin)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(call(args[1], args[2], request))
	case len(args) == 2 && args[0] == "get":
		return get(args[1])
	}
	return fmt.Errorf("say 'nodectl call SOCKET METHOD <REQUEST', or 'nodectl get URL'")
}

// call makes one call; an error of the server is an answer like any other.
func call(socket, method string, request []byte) node.Answer {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(16<<20)))
	if err == nil {
		defer conn.Close()
		var reply []byte
		if err = conn.Invoke(context.Background(), method, request, &reply); err == nil {
			return node.Answer{Reply: reply}
		}
	}
	st := status.Convert(err)
	return node.Answer{Code: uint32(st.Code()), Message: st.Message()}
}

// raw hands messages through as bytes.
type raw struct{}

func (raw) Name() string                  { return "proto" }
func (raw) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (raw) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), b...)
	return nil
}

// get prints what is served at url; a server that does not answer at once is no server.
func get(url string) error {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(os.Stdout, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}
