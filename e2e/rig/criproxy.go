package rig

import "os/exec"

// AddProxy adds a criproxy before the given runtimes, of which the first is the default; more flags may follow. It is not
// started yet.
func (r *Rig) AddProxy(name string, runtimes []*Server, flags ...string) *Server {
	var proxy *Server
	proxy = r.addServer(name, name+".sock", func() (*exec.Cmd, error) {
		args := append(proxy.ProxyFlags(runtimes), "--log-level", "debug")
		return exec.Command(r.Bin.Criproxy, append(args, flags...)...), nil
	})
	return proxy
}

// ProxyFlags are what criproxy needs to be told to serve there, before the given runtimes.
func (s *Server) ProxyFlags(runtimes []*Server) []string {
	flags := []string{"--listen", s.Endpoint()}
	for _, r := range runtimes {
		flags = append(flags, "--runtime", r.Name+"="+r.Endpoint())
	}
	return flags
}
