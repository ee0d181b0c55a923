package bench

// method tells a reader of RESULTS.md what was compared with what.
const method = `## How it is measured

The programs are release builds. Virtlet runs as on a node, in a network namespace of its own, and is driven through its
CRI socket; each call's time includes gRPC and the client. What ran before the first measurement (page cache, the first
pod's bridge) is not counted. Where there is a peer, the two take turns and change the order each time.

- **StartContainer against bare QEMU.** Bare QEMU is the same binary with the same argument vector, read from /proc of a
  QEMU that Virtlet started; only the paths of the root disk and the seed differ. It gets equal file descriptors (monitor
  socket, socket pairs, a tap in a network namespace), a fresh overlay on the same image, and an empty environment. All
  that is made before its clock starts, which is when QEMU is forked, and its guest is let run (QMP cont) at the first
  reply. It is in no cgroup and no cage, has no DHCP server and no filters on its tap. Virtlet's clock starts with the call; cgroup,
  vmwrapper, tap, filters, DHCP, two database transactions and the second monitor are all in it.
- **Console lines.** The boot loader's line is the first line of any kind on the serial port; the kernel's is the first that
  holds "Linux version". Virtlet's time is the time in the CRI log, bare QEMU's is that of the read from its console.
- **The cage.** QEMU is run for its version by the same way through a stage into a cage, and by a plain fork and exec. In
  StartContainer's own line the cage is included on Virtlet's side and not on bare QEMU's.
- **RunPodSandbox against CNI ADD.** libcni runs the same configuration (bridge, host-local, portmap) in the same node on
  a fresh network namespace, whose making is not counted.
- **Lists.** ListPodSandbox and then ListContainers with every pod of the node in the answer, each pod with a created VM
  and with the labels and annotations that kubelet writes, timed together; the figure is the median of the 99th percentiles of the batches.
- **Pulls.** One server on loopback sends one file of random bytes to both sides by sendfile, as a file and as the layer of an
  OCI artifact; both sides write to one file system. Virtlet's time is the call's: download, digest, inspection, record, and all of it
  synced. So the peer's first figure is with a sync of its file at the end, and the second is without. curl and the hash run in both ways,
  as a pipe (curl, tee, hash) and one after the other, and the faster one counts. Debian's sha256sum does not use the CPU's
  instructions for SHA-256 and openssl does, as Virtlet, so the latter is the harder peer. Skopeo copies to a directory (dir:). Every
  pull is of what the node has not got, and the peers' turns rotate with it.
- **Memory of a pull** is the greatest RSS, as the kernel counts it (VmHWM), of a daemon that has pulled nothing before, less what it had
  when the pull began.
- **A root disk** is the qcow2 overlay that CreateContainer makes, made by the same function, synced.
- **criproxy** stands before two runtimes that do nothing but serve pods from memory, in processes of their own. A call about one pod is held
  against the same call to its runtime. Lists of the node are held against the own list of the runtime with nine tenths of the pods, and,
  with half of the pods in each, against one runtime with all of them. No runtime here does any work of its own, so that each hop shows.
- **Other memory** is PSS from smaps_rollup, with guests that are up. **CPU** is the time that the kernel counted for all threads
  (sched_info) while guests are idle and nobody calls, in percent of one core.
`
