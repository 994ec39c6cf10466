package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// A Network is what Docker has asked for by `docker network create`. Docker says
// it once, so that it has to be kept: in a file each, named by the id.
type Network struct {
	ID       string `json:"id"`
	Parent   string `json:"parent"`
	Made     bool   `json:"made,omitempty"` // the parent: it goes with its last network
	Internal bool   `json:"internal,omitempty"`
	Mode     string `json:"mode"`
	Flag     string `json:"flag,omitempty"`
	MTU      int    `json:"mtu,omitempty"`
	Datapath string `json:"datapath,omitempty"`
	Host     string `json:"host,omitempty"`
	Via      string `json:"via-host,omitempty"`
	Guard    string `json:"guard,omitempty"`
	Rate     string `json:"bcrate,omitempty"`
	VLAN     string `json:"vlan,omitempty"`
	Outer    string `json:"qinq,omitempty"`
	Trunk    string `json:"trunk,omitempty"`
	Gateway4 string `json:"gateway4,omitempty"`
	Gateway6 string `json:"gateway6,omitempty"`
}

// Keys of a request's options.
const (
	genericKey  = "com.docker.network.generic" // what was said with -o
	internalKey = "com.docker.network.internal"
	mtuKey      = "com.docker.network.driver.mtu"
)

// newNetwork reads a request.
func newNetwork(req *network.CreateNetworkRequest) (*Network, error) {
	n := &Network{ID: req.NetworkID}
	if n.ID == "" || filepath.Base(n.ID) != n.ID {
		return nil, fmt.Errorf("network id %q: %w", n.ID, loader.ErrInvalid)
	}
	n.Internal, _ = req.Options[internalKey].(bool)
	options, _ := req.Options[genericKey].(map[string]any)
	for key, value := range options {
		text, ok := value.(string)
		if !ok {
			return nil, fmt.Errorf("option %s: %w: %v is no word", key, loader.ErrInvalid, value)
		}
		if err := n.option(key, text); err != nil {
			return nil, err
		}
	}
	spec, err := n.spec("")
	if err != nil {
		return nil, fmt.Errorf("options: %w", err)
	}
	if spec.Mode == maps.Source {
		return nil, fmt.Errorf("option macvlan_mode: %w: mode source takes a list, which Docker has no words for", loader.ErrInvalid)
	}
	if n.Parent == "lo" {
		return nil, fmt.Errorf("option parent: %w: lo has no wire behind it", loader.ErrInvalid)
	}
	n.Gateway4, n.Gateway6 = gateway(req.IPv4Data), gateway(req.IPv6Data)
	return n, nil
}

// option reads one -o KEY=VALUE. The modes have the names that Docker's own
// drivers have for them, and one that serves both.
func (n *Network) option(key, value string) (err error) {
	switch key {
	case "parent":
		n.Parent = value
	case "mode", "macvlan_mode", "ipvlan_mode":
		if n.Mode != "" && n.Mode != value {
			return fmt.Errorf("option %s: %w: another says mode %s; say one", key, loader.ErrInvalid, n.Mode)
		}
		n.Mode = value
		spec := loader.LinkSpec{Kind: map[string]maps.Kind{"macvlan_mode": maps.Macvlan, "ipvlan_mode": maps.Ipvlan}[key]}
		if err := spec.SetMode(value); err != nil {
			return fmt.Errorf("option %s: %w", key, err)
		}
	case "flag", "ipvlan_flag":
		n.Flag = value
	case "mtu", mtuKey:
		if n.MTU, err = strconv.Atoi(value); err != nil || n.MTU < 1 {
			return fmt.Errorf("option %s: %w: %q is no number of bytes", key, loader.ErrInvalid, value)
		}
	case "datapath":
		n.Datapath = value
	case "host":
		n.Host = value
	case "via-host":
		n.Via = value
	case "guard":
		n.Guard = value
	case "bcrate":
		n.Rate = value
	case "vlan":
		n.VLAN = value
	case "qinq":
		n.Outer = value
	case "trunk":
		n.Trunk = value
	default:
		if !strings.HasPrefix(key, "com.docker.") { // Docker's own
			return fmt.Errorf("option %s: %w: not known; parent, macvlan_mode, ipvlan_mode, ipvlan_flag, mtu, host, via-host, datapath, guard, bcrate, vlan, qinq and trunk are", key, loader.ErrInvalid)
		}
	}
	return nil
}

// gateway is that of the first pool, "" for none.
func gateway(pools []*network.IPAMData) string {
	for _, p := range pools {
		address, _, _ := strings.Cut(p.Gateway, "/")
		return address
	}
	return ""
}

// spec describes the sub-interface of an endpoint, without its addresses.
func (n *Network) spec(endpoint string) (loader.LinkSpec, error) {
	spec := loader.LinkSpec{Parent: n.Parent, Name: deviceName(endpoint), MTU: n.MTU, Owner: owner(endpoint), GiveOnly: true}
	return spec, errors.Join(spec.SetMode(n.Mode), spec.SetFlag(n.Flag), spec.SetDatapath(n.Datapath), spec.SetHost(n.Host), spec.SetVia(n.Via), spec.Guard.Parse(n.Guard, n.Rate),
		spec.VLAN.Parse(n.VLAN, n.Outer, n.Trunk))
}

// owner is by which an endpoint's sub-interface is found.
func owner(endpoint string) string { return "docker/" + endpoint }

// deviceName is what a sub-interface is called until Docker moves it into the
// container.
func deviceName(endpoint string) string { return "xvd" + endpoint[:min(len(endpoint), 11)] }

// store keeps networks in a folder.
type store string

func (s store) path(id string) string { return filepath.Join(string(s), id+".json") }

// load reads one network. One that is not there is fs.ErrNotExist.
func (s store) load(id string) (*Network, error) {
	raw, err := os.ReadFile(s.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("network %s: %w in %s: remove it from Docker and create it again", id, fs.ErrNotExist, s)
	}
	if err != nil {
		return nil, fmt.Errorf("read network: %w", err)
	}
	n := &Network{}
	if err := json.Unmarshal(raw, n); err != nil {
		return nil, fmt.Errorf("read network %s: %w", s.path(id), err)
	}
	return n, nil
}

// all reads all networks.
func (s store) all() (all []*Network, err error) {
	files, err := filepath.Glob(s.path("*"))
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	for _, f := range files {
		n, err := s.load(strings.TrimSuffix(filepath.Base(f), ".json"))
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

// save writes a network, wholly or not at all.
func (s store) save(n *Network) error {
	raw, err := json.MarshalIndent(n, "", "\t")
	if err != nil {
		return fmt.Errorf("write network: %w", err)
	}
	next := s.path(n.ID) + ".new"
	if err := os.WriteFile(next, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("write network: %w", err)
	}
	if err := os.Rename(next, s.path(n.ID)); err != nil {
		return fmt.Errorf("write network: %w", err)
	}
	return nil
}

func (s store) remove(id string) error {
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network: %w", err)
	}
	return nil
}
