package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// serveHTTP answers on port 80 of every address, IPv4 and IPv6.
func (g *guest) serveHTTP() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprint(w, g.facts().Text())
	})
	mux.HandleFunc("GET /json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(g.facts()) // fails only if the client has gone
	})
	mux.HandleFunc("/poweroff", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "powering off")
		g.endSoon(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	})
	mux.HandleFunc("/reboot", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "rebooting")
		g.endSoon(syscall.LINUX_REBOOT_CMD_RESTART)
	})
	mux.HandleFunc("/panic", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "panicking")
		time.AfterFunc(100*time.Millisecond, func() {
			g.check("panicking", os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0))
		})
	})
	mux.HandleFunc("/fill", fill)
	mux.HandleFunc("/fetch", fetch)
	mux.HandleFunc("/exec", run)
	mux.HandleFunc("POST /frame", sendFrame)
	mux.HandleFunc("/console", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(g.console, r.FormValue("text"))
		fmt.Fprintln(w, "printed")
	})
	mux.HandleFunc("/flood", g.flood)
	server := &http.Server{Addr: ":80", Handler: mux, ReadHeaderTimeout: time.Minute}
	for {
		err := server.ListenAndServe()
		g.say("serving HTTP: %v", err)
		time.Sleep(time.Second)
	}
}

func number(r *http.Request, name string, otherwise int) int {
	if n, err := strconv.Atoi(r.FormValue(name)); err == nil && n >= 0 {
		return n
	}
	return otherwise
}

// fill writes mb MiB that do not compress to /fill on the root disk, down to the disk.
func fill(w http.ResponseWriter, r *http.Request) {
	f, err := os.Create("/fill")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	x := uint64(time.Now().UnixNano()) | 1
	for i := range number(r, "mb", 1) {
		for j := range block {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			block[j] = byte(x)
		}
		if _, err := f.Write(block); err != nil {
			http.Error(w, fmt.Sprintf("after %d MiB: %v", i, err), http.StatusInsufficientStorage)
			return
		}
	}
	if err := f.Sync(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, "filled")
}

// fetch gets url from inside the guest and returns status and body.
func fetch(w http.ResponseWriter, r *http.Request) {
	client := &http.Client{Timeout: time.Duration(number(r, "seconds", 10)) * time.Second}
	resp, err := client.Get(r.FormValue("url"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // a broken body ends the answer early, which is what the client is to see
}

// run runs a shell command in the guest and returns its output; a command that fails gives status 500.
func run(w http.ResponseWriter, r *http.Request) {
	out, err := exec.CommandContext(r.Context(), "/bin/sh", "-c", r.FormValue("cmd")).CombinedOutput()
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		out = append(out, []byte("\n"+err.Error()+"\n")...)
	}
	_, _ = w.Write(out) // fails only if the client has gone
}

// flood prints numbered lines on the console as fast as it takes them and tells how many they were.
func (g *guest) flood(w http.ResponseWriter, r *http.Request) {
	end := time.Now().Add(time.Duration(number(r, "seconds", 1)) * time.Second)
	limit := number(r, "lines", 1<<31-1)
	padding := strings.Repeat("x", number(r, "width", 64))
	n := 0
	for ; n < limit && time.Now().Before(end); n++ {
		if _, err := fmt.Fprintf(g.console, "flood %d %s\n", n, padding); err != nil {
			break
		}
	}
	fmt.Fprintln(w, n)
}
