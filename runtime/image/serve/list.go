package serve

import (
	"encoding/json"
	"html/template"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
)

// listing is a directory as JSON shows it.
type listing struct {
	Path    string  `json:"path"`
	Entries []entry `json:"entries"`
}

type entry struct {
	Name      string `json:"name"`
	Directory bool   `json:"directory,omitempty"`
	// Size in bytes.
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
	// SHA256 in hex, where it is known already; NAME.sha256 waits for it.
	SHA256 string `json:"sha256,omitempty"`
}

// Href leads to the entry from its directory.
func (e entry) Href() string {
	name := "./" + e.Name
	if e.Directory {
		name += "/"
	}
	return (&url.URL{Path: name}).String()
}

// list answers with what is in a directory, as HTML or as JSON.
func (s *Server) list(w http.ResponseWriter, r *http.Request, dir string) error {
	infos, err := s.children(dir)
	if err != nil {
		return err
	}
	l := listing{Path: path.Join("/", dir), Entries: []entry{}}
	for _, info := range infos {
		e := entry{Name: info.Name(), Directory: info.IsDir(), Modified: info.ModTime().UTC()}
		if id, err := identify(info); err == nil && !e.Directory {
			e.Size = id.size
			if sum, known := s.digests.peek(id); known {
				e.SHA256 = sum.String()
			}
		}
		l.Entries = append(l.Entries, e)
	}
	h := w.Header()
	h.Set("Vary", "Accept")
	h.Set("Cache-Control", "no-cache")
	if prefersJSON(r.Header.Values("Accept")) {
		h.Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(l) // it fails only where the client has gone
		return nil
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	_ = page.Execute(w, l)
	return nil
}

// prefersJSON tells whether a client likes JSON better than HTML; one that likes both the same, or says nothing, is a
// person with a browser or curl.
func prefersJSON(accept []string) bool {
	html, rest, asJSON := -1.0, 0.0, 0.0
	for item := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		kind, params, err := mime.ParseMediaType(item)
		if err != nil {
			continue
		}
		q := 1.0
		if given, err := strconv.ParseFloat(params["q"], 64); err == nil {
			q = given
		}
		switch kind {
		case "application/json":
			asJSON = q
		case "text/html":
			html = q
		case "text/*", "*/*":
			rest = max(rest, q)
		}
	}
	if html < 0 { // not named: JSON, which is, goes before it
		return asJSON > 0 && asJSON >= rest
	}
	return asJSON > html
}

var page = template.Must(template.New("listing").Parse(`<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Images in {{.Path}}</title>
<style>body{font-family:sans-serif;margin:2em}td,th{padding:.2em 1em;text-align:left}td.n{text-align:right}code{font-size:85%}</style></head>
<body><h1>Images in {{.Path}}</h1>
<table><tr><th>Name</th><th>Bytes</th><th>Changed</th><th>SHA-256</th></tr>
{{if ne .Path "/"}}<tr><td><a href="../">..</a></td></tr>
{{end}}{{range .Entries}}<tr><td><a href="{{.Href}}">{{.Name}}{{if .Directory}}/{{end}}</a></td>` +
	`<td class="n">{{if not .Directory}}{{.Size}}{{end}}</td><td>{{.Modified.Format "2006-01-02 15:04:05"}}</td>` +
	`<td>{{with .SHA256}}<code>{{.}}</code>{{end}}</td></tr>
{{end}}</table>
<p><a href="SHA256SUMS">SHA256SUMS</a></p></body></html>
`))
