package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"
	core "k8s.io/api/core/v1"

	"github.com/xvlan/xvlan/lab"
)

const (
	wireAddr = "192.0.2.254"
	image    = "localhost/xvlan"
)

// A node is a host with mounts and processes of its own, on which no xvlan has ever
// been, with parents eth1 and eth1.10 and a wire behind them.
type node struct {
	host, wire *lab.Netns
	dir        string
	enter      []string // what runs a command on it
}

func newNode(t *testing.T) *node {
	t.Helper()
	for _, tool := range []string{"podman", "runc", "nsenter"} {
		lab.NeedTool(t, tool)
	}
	n := &node{host: lab.NewNetns(t, "node"), wire: lab.NewNetns(t, "wire"), dir: t.TempDir()}
	lab.Veth(t, n.host, "eth1", n.wire, "w0")
	lab.Veth(t, n.host, "eth1.10", n.wire, "w10")
	n.wire.Addr(t, "w0", wireAddr+"/24")
	const script = `mount --make-rshared / && for dir in /opt /run/xvlan /run/netns; do
		mkdir -p $dir && mount -t tmpfs none $dir || exit; done; exec sleep infinity`
	cmd := n.host.Start(t, "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script)
	lab.Eventually(t, "the node is there", func() bool {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
		pid := strings.TrimSpace(string(children))
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		n.enter = []string{"nsenter", "-t", pid, "-m", "-p"}
		return err == nil && string(comm) == "sleep\n"
	})
	conf := "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n" +
		"[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1000:1000\"]\n"
	if err := os.WriteFile(n.at("containers.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *node) at(name string) string { return filepath.Join(n.dir, name) }

// try runs a command on the node.
func (n *node) try(t *testing.T, args ...string) (string, error) {
	t.Helper()
	all := append(n.enter[1:len(n.enter):len(n.enter)], args...)
	return n.host.Try(t, n.enter[0], all...)
}

func (n *node) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.try(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// podman runs podman on the node, with folders of its own.
func (n *node) podman(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return n.try(t, append([]string{"env", "CONTAINERS_CONF=" + n.at("containers.conf"), "podman", "--root", n.at("root"), "--runroot", n.at("runroot"),
		"--tmpdir", n.at("tmp"), "--storage-driver", "vfs", "--runtime", "runc"}, args...)...)
}

// build makes the image as `make image` does.
func (n *node) build(t *testing.T) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-o", n.at("build")+"/", "../cmd/xvlan", "../cmd/xvlan-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	recipe, err := filepath.Abs("../Containerfile")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := n.podman(t, "build", "--target", "prebuilt", "-t", image, "-f", recipe, n.at("build")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// as has podman run a container as a node's runtime would.
func (n *node) as(t *testing.T, pod core.PodSpec, c core.Container, args ...string) (string, error) {
	t.Helper()
	args = append([]string{"run", "--network", "host", "--name", c.Name}, args...)
	s := c.SecurityContext
	if s.Privileged != nil && *s.Privileged {
		args = append(args, "--privileged")
	}
	if s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem {
		args = append(args, "--read-only", "--read-only-tmpfs=false")
	}
	if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation {
		args = append(args, "--security-opt", "no-new-privileges")
	}
	if s.Capabilities != nil {
		for _, word := range s.Capabilities.Drop {
			args = append(args, "--cap-drop", string(word))
		}
		for _, word := range s.Capabilities.Add {
			args = append(args, "--cap-add", string(word))
		}
	}
	for _, m := range c.VolumeMounts {
		for _, v := range pod.Volumes {
			if v.Name != m.Name {
				continue
			}
			propagation := "rprivate"
			if m.MountPropagation != nil {
				propagation = map[core.MountPropagationMode]string{
					core.MountPropagationHostToContainer: "rslave", core.MountPropagationBidirectional: "rshared",
				}[*m.MountPropagation]
			}
			n.run(t, "mkdir", "-p", v.HostPath.Path)
			args = append(args, "-v", v.HostPath.Path+":"+m.MountPath+":"+propagation)
		}
	}
	words := c.Args
	if len(c.Command) > 0 {
		args, words = append(args, "--entrypoint", c.Command[0]), append(c.Command[1:], words...)
	}
	args = append(args, image)
	for _, word := range words {
		args = append(args, strings.ReplaceAll(word, "$(POD_IP)", "127.0.0.1"))
	}
	return n.podman(t, args...)
}

// get asks what serves on the node, at a probe's or the metrics' path.
func (n *node) get(t *testing.T, port int32, path string) (code int, body string) {
	t.Helper()
	var conn net.Conn
	var err error
	n.host.Do(t, func() { conn, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)) })
	if err != nil {
		return 0, err.Error()
	}
	dial := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	r, err := client.Get("http://node" + path)
	if err != nil {
		return 0, err.Error()
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(text)
}

// cni calls the plugin that is installed on the node, as Multus' daemon does: with
// mounts that are gone when it ends.
func (n *node) cni(t *testing.T, verb, conf, pod, dev string) (string, error) {
	t.Helper()
	file := n.at("conf.json")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	return n.try(t, "unshare", "--mount", "env", "CNI_COMMAND="+verb, "CNI_CONTAINERID="+pod, "CNI_NETNS=/run/netns/"+pod, "CNI_IFNAME="+dev, "CNI_PATH=/opt/cni/bin:/usr/lib/cni",
		"sh", "-c", "exec /opt/cni/bin/xvlan-cni <"+file)
}

// add is cni for ADD, which must succeed. It returns the first address.
func (n *node) add(t *testing.T, conf, pod, dev string) string {
	t.Helper()
	out, err := n.cni(t, "ADD", conf, pod, dev)
	if err != nil {
		t.Fatalf("%s: %v", conf, err)
	}
	var result current.Result
	if err := json.Unmarshal([]byte(out), &result); err != nil || len(result.IPs) == 0 {
		t.Fatalf("%s: %v", out, err)
	}
	return result.IPs[0].Address.IP.String()
}

// configuration is a network's as Multus hands it to the plugin: with the name of
// the definition if it has none, and what the pod's annotation asks for.
func (n *node) configuration(t *testing.T, net *network, pod *core.Pod) string {
	t.Helper()
	var conf map[string]any
	var wishes []struct {
		Name, MAC string
		IPs       []string
	}
	err := errors.Join(json.Unmarshal([]byte(net.Spec.Config), &conf),
		json.Unmarshal([]byte(pod.Annotations["k8s.v1.cni.cncf.io/networks"]), &wishes))
	if err != nil {
		t.Fatalf("%s: %v", net.Name, err)
	}
	if conf["name"] == nil {
		conf["name"] = net.Name
	}
	for _, w := range wishes {
		if able, ok := conf["capabilities"].(map[string]any); ok && w.Name == net.Name && able["mac"] == true && able["ips"] == true {
			conf["runtimeConfig"] = map[string]any{"mac": w.MAC, "ips": w.IPs}
		}
	}
	if ipam := conf["ipam"].(map[string]any); ipam["type"] == "host-local" {
		ipam["dataDir"] = n.at("ipam")
	}
	text, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestNode does what the DaemonSet does on a fresh node, and then what a pod and its
// runtime do there: what is done to the pod's device is followed by the service in
// its container, also in a namespace that is younger than that.
func TestNode(t *testing.T) {
	n := newNode(t)
	n.build(t)
	pod := daemonSet(t).Spec.Template.Spec
	t.Cleanup(func() { _, _ = n.podman(t, "rm", "-f", "-t", "0", "-a") })
	for range 2 { // as when the pod is started again
		for _, c := range pod.InitContainers {
			if out, err := n.as(t, pod, c, "--rm"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
	}
	if kind := n.run(t, "stat", "-f", "-c", "%T", "/run/xvlan/bpf"); kind != "bpf_fs\n" {
		t.Errorf("on /run/xvlan/bpf of the node is %s", kind)
	}
	n.run(t, "cmp", "/opt/cni/bin/xvlan-cni", n.at("build/xvlan-cni"))
	serve := pod.Containers[0]
	if out, err := n.as(t, pod, serve, "-d"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, probe := range []*core.Probe{serve.ReadinessProbe, serve.LivenessProbe} {
		lab.Eventually(t, probe.HTTPGet.Path+" is answered", func() bool {
			code, _ := n.get(t, serve.Ports[0].ContainerPort, probe.HTTPGet.Path)
			return code == http.StatusOK
		})
	}
	n.run(t, "ip", "netns", "add", "pod")
	n.run(t, "ip", "-n", "pod", "link", "set", "lo", "up")
	nets, asking := networks(t)
	t.Run("followed", func(t *testing.T) { n.followed(t, n.configuration(t, nets[0], asking), serve.Ports[0].ContainerPort) })
	t.Run("networks", func(t *testing.T) { n.all(t, nets, asking) })
	if out, err := n.podman(t, "stop", "serve"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := n.podman(t, "wait", "serve"); err != nil || out != "0\n" {
		t.Errorf("serve has ended with %s: %v", out, err)
	}
	if left := n.run(t, "find", "/run/xvlan/bpf", "-mindepth", "1", "-type", "d"); left != "" {
		t.Errorf("left are %s", left)
	}
}

// followed has a pod on a network, and its device followed.
func (n *node) followed(t *testing.T, conf string, port int32) {
	addr := n.add(t, conf, "pod", "net1")
	reached := func() { n.wire.Run(t, "ping", "-c1", "-w20", "-i0.2", "-q", addr) }
	reached()
	lab.Eventually(t, "the metrics have the pod's device", func() bool {
		_, text := n.get(t, port, "/metrics")
		return strings.Contains(text, `xvlan_link_up{link="net1",netns="pod",parent="eth1"} 1`)
	})
	n.run(t, "ip", "-n", "pod", "link", "set", "net1", "address", "02:00:5e:10:00:99")
	n.wire.Run(t, "ip", "neigh", "flush", "all")
	reached()
	n.host.Run(t, "ip", "link", "set", "eth1", "mtu", "1400")
	lab.Eventually(t, "the device has its parent's MTU", func() bool {
		return strings.Contains(n.run(t, "ip", "-n", "pod", "link", "show", "net1"), " mtu 1400 ")
	})
	if out, err := n.cni(t, "DEL", conf, "pod", "net1"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// all has a pod on all the networks at once, and then on none.
func (n *node) all(t *testing.T, nets []*network, asking *core.Pod) {
	for i, net := range nets {
		addr := n.add(t, n.configuration(t, net, asking), "pod", fmt.Sprint("net", i))
		if out := n.run(t, "ip", "-n", "pod", "addr", "show", fmt.Sprint("net", i)); !strings.Contains(out, " "+addr+"/") {
			t.Errorf("%s: no %s at %s", net.Name, addr, out)
		}
	}
	for i, net := range nets {
		if out, err := n.cni(t, "DEL", n.configuration(t, net, asking), "pod", fmt.Sprint("net", i)); err != nil {
			t.Errorf("%s: %v\n%s", net.Name, err, out)
		}
	}
}
