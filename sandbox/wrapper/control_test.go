package wrapper

import (
	"net"
	"strings"
	"testing"
)

func TestAttachLimit(t *testing.T) {
	guest, port := net.Pipe()
	console := startConsole(port, &memoryLog{}, LogSpec{}.pace())
	dir := t.TempDir()
	listener, err := listen(ControlSocket(dir))
	if err != nil {
		t.Fatal(err)
	}
	c := &control{listener: listener, vm: &vm{console: console, log: &logFile{}}}
	go c.serve()
	t.Cleanup(func() {
		listener.Close()
		guest.Close()
		<-console.done
	})

	var clients []net.Conn
	for range maxClients {
		conn, err := Attach(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		clients = append(clients, conn)
	}
	for range 3 { // a refusal takes no place
		if _, err := Attach(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "64 clients are attached to the console") {
			t.Fatalf("one too many: %v", err)
		}
	}
	if err := ReopenLog(t.Context(), dir, ""); err == nil || !strings.Contains(err.Error(), "keeps no log") {
		t.Errorf("another request: %v", err)
	}
	clients[0].Close()
	var late net.Conn
	eventually(t, "room for another client", patience, func() bool {
		late, err = Attach(t.Context(), dir)
		return err == nil
	})
	defer late.Close()
	eventually(t, "all clients at the console", patience, func() bool { return console.attached() == maxClients })
	if _, err := guest.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	expect(t, late, "hello\n")
	expect(t, clients[maxClients-1], "hello\n")
}
