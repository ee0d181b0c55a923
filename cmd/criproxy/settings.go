package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"

	"github.com/virtlet/virtlet/cmd/internal/logging"
	"github.com/virtlet/virtlet/cmd/internal/setting"
	"github.com/virtlet/virtlet/runtime/proxy"
)

// Config is all that can be set. What belongs to one runtime is NAME=VALUE.
type Config struct {
	Listen      string
	Runtimes    []string
	Handlers    []string
	Images      []string
	Annotations []string
	Essential   []string

	StopTimeout time.Duration
	LogLevel    string
	LogFormat   string
}

// The rules by which the first criproxy found VM pods hold for a runtime of this name, unless others are set.
const (
	virtlet         = "virtlet"
	virtletSelector = "virtlet.cloud"
)

func defaults() Config {
	return Config{
		Listen:      "unix:///run/criproxy.sock",
		Runtimes:    []string{"containerd=unix:///run/containerd/containerd.sock", virtlet + "=unix:///run/virtlet/virtlet.sock"},
		Images:      []string{virtlet + "=" + virtletSelector + "/"},
		Annotations: []string{virtlet + "=" + virtletSelector},
		StopTimeout: 10 * time.Second,
		LogLevel:    logrus.InfoLevel.String(),
		LogFormat:   logging.Auto,
	}
}

// settings is the one table of all there is to set, bound to c.
func settings(c *Config) setting.Table {
	return setting.Table{Program: program, Settings: []setting.Setting{
		setting.Key("listen", "unix `socket` on which CRI is served to kubelet", socketAddress(&c.Listen)),
		setting.Key("runtime", "runtimes as NAME=unix:///SOCKET; the first is the default", setting.List(&c.Runtimes, of(address))),
		setting.Key("handlers", "runtime handlers as NAME=HANDLER; a runtime without any here tells them itself", setting.List(&c.Handlers, of(named(setting.HandlerName)))),
		setting.Key("images", "beginnings of image references as NAME=PREFIX; others are the default runtime's", setting.List(&c.Images, of(nonempty))),
		setting.Key("annotations", "values of the pod annotation "+proxy.TargetAnnotation+" as NAME=VALUE", setting.List(&c.Annotations, of(nonempty))),
		setting.Key("essential", "names of runtimes without which the node is not ready; the first always is one", setting.List(&c.Essential, named(setting.HandlerName))),
		setting.Key("stop-timeout", "how long a stopping criproxy waits for requests under way", setting.Duration(&c.StopTimeout)),
		setting.Key("log-level", "least weight of what is logged: error, warning, info, debug or trace", setting.Choice(&c.LogLevel, logging.Levels()...)),
		setting.Key("log-format", "auto, text or json; auto is text on a terminal", setting.Choice(&c.LogFormat, logging.Auto, logging.Text, logging.JSON)),
	}}
}

// loadConfig puts the configuration together.
func loadConfig(file, fallback string, flags *pflag.FlagSet) (Config, setting.Origins, error) {
	conf := defaults()
	from, err := settings(&conf).Load(file, fallback, flags)
	if err != nil {
		return conf, nil, err
	}
	_, err = conf.runtimes()
	return conf, from, err
}

// runtimes puts together what belongs to each runtime, and fails where the settings do not fit together.
func (c *Config) runtimes() ([]proxy.Runtime, error) {
	if len(c.Runtimes) == 0 {
		return nil, errors.New("runtime: none is set; name at least one as NAME=unix:///SOCKET")
	}
	var all []proxy.Runtime
	at := map[string]*proxy.Runtime{}
	for _, r := range c.Runtimes {
		name, endpoint, _ := strings.Cut(r, "=")
		if endpoint == c.Listen {
			return nil, fmt.Errorf("runtime: %s is the socket on which criproxy itself listens", r)
		}
		for _, other := range all {
			if other.Name == name || other.Endpoint == endpoint {
				return nil, fmt.Errorf("runtime: %s and %s=%s: each has a name and a socket of its own", r, other.Name, other.Endpoint)
			}
		}
		all = append(all, proxy.Runtime{Name: name, Endpoint: endpoint})
	}
	for i := range all {
		at[all[i].Name] = &all[i]
	}
	all[0].Essential = true

	none := defaults()
	var faults []error
	give := func(key string, list, unset []string, to func(r *proxy.Runtime, value string)) {
		owner := map[string]string{}
		for _, item := range list {
			name, value, _ := strings.Cut(item, "=")
			r, known := at[name]
			switch other, taken := owner[value]; {
			case !known && slices.Equal(list, unset): // the default is for a runtime that is not here
			case !known:
				faults = append(faults, fmt.Errorf("%s: %s: no runtime is called %q", key, item, name))
			case taken && value != "":
				faults = append(faults, fmt.Errorf("%s: %q is that of %s and of %s", key, value, other, name))
			default:
				owner[value] = name
				to(r, value)
			}
		}
	}
	give("handlers", c.Handlers, none.Handlers, func(r *proxy.Runtime, v string) { r.Handlers = append(r.Handlers, v) })
	give("images", c.Images, none.Images, func(r *proxy.Runtime, v string) { r.Images = append(r.Images, v) })
	give("annotations", c.Annotations, none.Annotations, func(r *proxy.Runtime, v string) { r.Annotations = append(r.Annotations, v) })
	give("essential", c.Essential, none.Essential, func(r *proxy.Runtime, _ string) { r.Essential = true })
	return all, errors.Join(faults...)
}

// The rules of single values.

// socketAddress is unix:// and a path; the path alone will do.
func socketAddress(to *string) pflag.Value {
	return setting.New("socket", func(s string) error {
		if filepath.IsAbs(s) {
			s = proxy.EndpointPrefix + s
		}
		if err := address(s); err != nil {
			return err
		}
		*to = s
		return nil
	}, func() string { return *to })
}

func address(s string) error {
	path, ok := strings.CutPrefix(s, proxy.EndpointPrefix)
	switch {
	case !ok || !filepath.IsAbs(path):
		return fmt.Errorf("%q is not a socket such as unix:///run/containerd/containerd.sock", s)
	case path != filepath.Clean(path):
		return fmt.Errorf("%q can be written as %s%s", s, proxy.EndpointPrefix, filepath.Clean(path))
	}
	return setting.SocketLength(path)
}

// of is the rule for NAME=VALUE.
func of(rule func(string) error) func(string) error {
	return func(s string) error {
		name, value, found := strings.Cut(s, "=")
		if !found {
			return fmt.Errorf("%q is not of the form NAME=VALUE, with the name of a runtime", s)
		}
		if err := named(setting.HandlerName)(name); err != nil {
			return fmt.Errorf("the name of a runtime: %w", err)
		}
		return rule(value)
	}
}

// named is a rule for what may not be empty either.
func named(rule func(string) error) func(string) error {
	return func(s string) error {
		if s == "" {
			return errors.New("it is empty")
		}
		return rule(s)
	}
}

func nonempty(s string) error {
	return named(func(string) error { return nil })(s)
}
