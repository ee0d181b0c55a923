package rig

import "os/exec"

// AddProxy adds a criproxy before the given runtimes, of which the first is the default; more flags may follow. It is not
// started yet.
func (r *Rig) AddProxy(name string, runtimes []*Server, flags ...string) *Server {
	var proxy *Server
	proxy = r.addServer(name, name+".sock", func() (*exec.Cmd, error) {
		args := []string{"--listen", proxy.Endpoint(), "--log-level", "debug"}
		for _, s := range runtimes {
			args = append(args, "--runtime", s.Name+"="+s.Endpoint())
		}
		return exec.Command(r.Bin.Criproxy, append(args, flags...)...), nil
	})
	return proxy
}
