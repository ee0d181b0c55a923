package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/virtlet/virtlet/cmd/internal/output"
	"github.com/virtlet/virtlet/cmd/internal/usage"
	controlv1 "github.com/virtlet/virtlet/runtime/control/v1"
)

func imageCommand(file *string) *cobra.Command {
	return usage.Group(&cobra.Command{
		Use:   "image",
		Short: "List, pull, import and remove the images of this node, and watch them come",
		Long:  "image asks the daemon that listens on the socket of the setting `listen`.",
	}, imageList(file), imagePull(file), imageImport(file), imageRemove(file), imageWatch(file))
}

// withClient makes a command's work of a function that needs the daemon.
func withClient(file *string, work func(*cobra.Command, *client, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		conf, _, err := effective(*file, cmd.Flags())
		if err != nil {
			return err
		}
		c, err := dialDaemon(cmd.Context(), conf.Listen)
		if err != nil {
			return err
		}
		defer c.close()
		return plain(work(cmd, c, args))
	}
}

func imageList(file *string) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the images of this node", Args: usage.NoArgs,
		RunE: withClient(file, func(cmd *cobra.Command, c *client, _ []string) error {
			images, err := c.list(cmd.Context())
			if err != nil {
				return err
			}
			return output.Print(cmd.OutOrStdout(), format, images, func(w io.Writer) error { return imageTable(w, images) })
		}),
	}
	output.Flag(cmd, &format)
	return cmd
}

// stored is what pull and import print.
type stored struct {
	Image string `json:"image"`
	ID    string `json:"id"`
}

func imagePull(file *string) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "pull NAME", Short: "Bring an image onto this node, and show how far it is", Args: usage.Args(cobra.ExactArgs(1)),
		RunE: withClient(file, func(cmd *cobra.Command, c *client, args []string) error {
			return c.obtain(cmd, format, args[0], func(ctx context.Context) (string, error) {
				resp, err := c.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: args[0]}})
				return resp.GetImageRef(), err
			})
		}),
	}
	output.Flag(cmd, &format)
	return cmd
}

func imageImport(file *string) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "import FILE NAME", Short: "Take a file of this host as an image", Args: usage.Args(cobra.ExactArgs(2)),
		Long: "import makes an image of a file: qcow2 or raw, which gzip, xz or zstd may have compressed. The file stays.\n" +
			"With a digest in the name (NAME@sha256:…) content that has another one is refused.",
		RunE: withClient(file, func(cmd *cobra.Command, c *client, args []string) error {
			path, err := filepath.Abs(args[0]) // the daemon has another working directory
			if err != nil {
				return err
			}
			return c.obtain(cmd, format, args[1], func(ctx context.Context) (string, error) {
				resp, err := c.control.Import(ctx, &controlv1.ImportRequest{Path: path, Name: args[1]})
				return resp.GetImageId(), err
			})
		}),
	}
	output.Flag(cmd, &format)
	return cmd
}

// obtain shows how an image comes, and prints its id.
func (c *client) obtain(cmd *cobra.Command, format, name string, get func(context.Context) (id string, err error)) error {
	got := stored{Image: name}
	err := c.watched(cmd.Context(), name, newMeter(cmd.ErrOrStderr()), func(ctx context.Context) (err error) {
		got.ID, err = get(ctx)
		return err
	})
	if err != nil {
		return err
	}
	return output.Print(cmd.OutOrStdout(), format, got, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, got.ID)
		return err
	})
}

func imageRemove(file *string) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Aliases: []string{"remove"}, Short: "Forget images with all their names", Args: usage.Args(cobra.MinimumNArgs(1)),
		Long: "rm forgets images by name or id. The content stays for as long as a VM's disk is based on it.",
		RunE: withClient(file, func(cmd *cobra.Command, c *client, args []string) error {
			var faults []error
			for _, name := range args {
				faults = append(faults, plain(c.remove(cmd.Context(), name)))
			}
			return errors.Join(faults...)
		}),
	}
}

func imageWatch(file *string) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "watch [NAME]", Short: "Watch images come, all or one", Args: usage.Args(cobra.MaximumNArgs(1)),
		Long: "watch shows the pulls and imports that are under way, and those that begin, until it is interrupted. With a name it\n" +
			"shows the next end of that one alone, and fails if the pull does.",
		RunE: withClient(file, func(cmd *cobra.Command, c *client, args []string) error {
			var show meter = jsonMeter{cmd.OutOrStdout()}
			if format != output.JSON {
				show = newMeter(cmd.OutOrStdout())
			}
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			return c.watch(cmd.Context(), name, show, cmd.ErrOrStderr())
		}),
	}
	output.Flag(cmd, &format)
	return cmd
}
