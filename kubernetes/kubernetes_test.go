// Package kubernetes tests the manifests: that they say what Kubernetes
// understands, that our plugin takes the networks, and, with podman in the place of
// a node's runtime, that the image does on a node what they say.
package kubernetes

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// network is a NetworkAttachmentDefinition, as its working group's specification
// has it.
type network struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		Config string `json:"config"`
	} `json:"spec"`
}

// podMonitor is what of a PodMonitor of monitoring.coreos.com/v1 is used.
type podMonitor struct {
	meta.TypeMeta   `json:",inline"`
	meta.ObjectMeta `json:"metadata"`
	Spec            struct {
		JobLabel            string             `json:"jobLabel"`
		Selector            meta.LabelSelector `json:"selector"`
		PodMetricsEndpoints []struct {
			Port        string `json:"port"`
			Relabelings []struct {
				SourceLabels []string `json:"sourceLabels"`
				TargetLabel  string   `json:"targetLabel"`
			} `json:"relabelings"`
		} `json:"podMetricsEndpoints"`
	} `json:"spec"`
}

// read reads a file of manifests of these kinds, by API version and kind; a field
// that a kind has not fails the test.
func read(t *testing.T, file string, kinds map[string]func() any) (all []any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i, doc := range bytes.Split(text, []byte("\n---\n")) {
		var of meta.TypeMeta
		if err := yaml.Unmarshal(doc, &of); err != nil {
			t.Fatalf("%s: document %d: %v", file, i+1, err)
		}
		kind, ok := kinds[of.APIVersion+" "+of.Kind]
		if !ok {
			t.Fatalf("%s: document %d: %s %s is not expected", file, i+1, of.APIVersion, of.Kind)
		}
		object := kind()
		if err := yaml.UnmarshalStrict(doc, object); err != nil {
			t.Fatalf("%s: document %d: %v", file, i+1, err)
		}
		all = append(all, object)
	}
	return all
}

// daemonSet reads ours.
func daemonSet(t *testing.T) *apps.DaemonSet {
	t.Helper()
	all := read(t, "xvlan.yaml", map[string]func() any{"apps/v1 DaemonSet": func() any { return &apps.DaemonSet{} }})
	if len(all) != 1 {
		t.Fatalf("there are %d", len(all))
	}
	return all[0].(*apps.DaemonSet)
}

// networks reads the examples, and the pod that asks for two of them.
func networks(t *testing.T) (nets []*network, pod *core.Pod) {
	t.Helper()
	all := read(t, "networks.yaml", map[string]func() any{
		"k8s.cni.cncf.io/v1 NetworkAttachmentDefinition": func() any { return &network{} },
		"v1 Pod": func() any { return &core.Pod{} },
	})
	for _, object := range all {
		switch o := object.(type) {
		case *network:
			nets = append(nets, o)
		case *core.Pod:
			pod = o
		}
	}
	return nets, pod
}

// each visits the containers of a pod in the order in which they run.
func each(pod core.PodSpec) (all []core.Container) {
	return append(append(all, pod.InitContainers...), pod.Containers...)
}

// TestManifests checks what the API server would, and what of it hangs together.
func TestManifests(t *testing.T) {
	ds := daemonSet(t)
	pod := ds.Spec.Template
	selector, err := meta.LabelSelectorAsSelector(ds.Spec.Selector)
	if err != nil || selector.Empty() || !selector.Matches(labels.Set(pod.Labels)) {
		t.Errorf("the selector %v is not for pods with %v: %v", selector, pod.Labels, err)
	}
	volumes := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
	}
	for _, c := range each(pod.Spec) {
		privileged := c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
		if privileged != (c.Name == "install") {
			t.Errorf("%s: privileged is %v", c.Name, privileged)
		}
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("%s: there is no volume %s", c.Name, m.Name)
			}
			if m.MountPropagation != nil && *m.MountPropagation == core.MountPropagationBidirectional && !privileged {
				t.Errorf("%s: %s is Bidirectional, which only a privileged container may have", c.Name, m.Name)
			}
		}
	}
	serve := pod.Spec.Containers[0]
	port := serve.Ports[0]
	if want := fmt.Sprint(port.ContainerPort); pod.Annotations["prometheus.io/port"] != want {
		t.Errorf("the annotations say %v, the port is %s", pod.Annotations, want)
	}
	for _, probe := range []*core.Probe{serve.ReadinessProbe, serve.LivenessProbe} {
		if probe.HTTPGet.Port.StrVal != port.Name {
			t.Errorf("a probe is for port %s, there is %s", &probe.HTTPGet.Port, port.Name)
		}
	}
	monitor := read(t, "podmonitor.yaml", map[string]func() any{
		"monitoring.coreos.com/v1 PodMonitor": func() any { return &podMonitor{} },
	})[0].(*podMonitor)
	monitored, err := meta.LabelSelectorAsSelector(&monitor.Spec.Selector)
	if err != nil || !monitored.Matches(labels.Set(pod.Labels)) || monitor.Namespace != ds.Namespace ||
		pod.Labels[monitor.Spec.JobLabel] != "xvlan" || monitor.Spec.PodMetricsEndpoints[0].Port != port.Name {
		t.Errorf("the PodMonitor does not find pods with %v and port %s: %v", pod.Labels, port.Name, err)
	}
}
