package serve

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// TLS is a configuration with the certificate of those files, which are read again when they have changed: a renewed
// certificate is in force from the next connection on.
func TLS(certFile, keyFile string) (*tls.Config, error) {
	p := &pair{cert: certFile, key: keyFile}
	if _, err := p.get(nil); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: p.get}, nil
}

// pair is a certificate with its key.
type pair struct {
	cert, key string

	mu     sync.Mutex
	loaded *tls.Certificate
	times  [2]time.Time
}

// get keeps to the last good pair while a new one cannot be read: one of its files may be written yet.
func (p *pair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var times [2]time.Time
	for i, name := range []string{p.cert, p.key} {
		info, err := os.Stat(name)
		if err != nil {
			return p.last(err)
		}
		times[i] = info.ModTime()
	}
	if p.loaded != nil && times == p.times {
		return p.loaded, nil
	}
	fresh, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil {
		return p.last(err)
	}
	p.loaded, p.times = &fresh, times
	return p.loaded, nil
}

func (p *pair) last(err error) (*tls.Certificate, error) {
	if p.loaded != nil {
		return p.loaded, nil
	}
	return nil, fmt.Errorf("reading the certificate: %w", err)
}
