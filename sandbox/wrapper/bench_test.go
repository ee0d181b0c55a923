package wrapper

import (
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkConsole is the way of the console's bytes from QEMU's socket into the log file.
func BenchmarkConsole(b *testing.B) {
	port, file, err := socketPair()
	if err != nil {
		b.Fatal(err)
	}
	guest := file
	const endless = 1 << 40
	spec := LogSpec{Path: filepath.Join(b.TempDir(), "0.log"), Rate: endless, Burst: endless, MaxBytes: endless}
	log, err := openLogFile(spec)
	if err != nil {
		b.Fatal(err)
	}
	c := startConsole(port, log, spec.pace())
	block := []byte(strings.Repeat(strings.Repeat("x", 63)+"\n", 64))
	b.SetBytes(int64(len(block)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := guest.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	guest.Close()
	<-c.done
	log.close()
	if s := log.statistics(); s.lost != 0 {
		b.Errorf("%d bytes lost", s.lost)
	}
}
