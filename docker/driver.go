// Package docker is a network driver for Docker: it speaks the protocol of
// libnetwork's remote drivers and makes each endpoint a sub-interface.
//
// Docker's own macvlan and ipvlan drivers are the model: the same options, a VLAN
// device as parent that comes and goes by itself, a network without a parent that
// is internal. A sub-interface is known by its owner, which names the endpoint;
// of a network a file tells what Docker has said of it. So the driver may be
// started anew at any time.
package docker

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/xvlan/xvlan/internal/thread"
	"github.com/xvlan/xvlan/loader"
	"github.com/xvlan/xvlan/maps"
)

// Driver answers Docker. It acts in the network namespace of the process.
type Driver struct {
	log      *slog.Logger
	networks store
	mu       sync.Mutex // of networks and the parents made for them
}

var _ network.Driver = (*Driver)(nil)

// New makes a driver that keeps its networks in a folder, which it makes.
func New(log *slog.Logger, dir string) (*Driver, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of networks: %w", err)
	}
	return &Driver{log: log, networks: store(dir)}, nil
}

// with runs fn with the loader, whose thread must be its own.
func (d *Driver) with(fn func(h *loader.Host) error) error {
	return thread.Run(func() error {
		h, err := loader.Open(d.log)
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	})
}

// said logs what was asked for, and what has become of it.
func (d *Driver) said(what string, err error, args ...any) error {
	if err != nil {
		d.log.Error(what, append(args, "err", err)...)
		return err
	}
	d.log.Info(what, args...)
	return nil
}

// GetCapabilities says that networks are this host's own, and their endpoints
// reachable from elsewhere.
func (d *Driver) GetCapabilities() (*network.CapabilitiesResponse, error) {
	return &network.CapabilitiesResponse{Scope: network.LocalScope, ConnectivityScope: network.GlobalScope}, nil
}

// CreateNetwork checks a network's options, makes its parent if need be, and
// keeps it.
func (d *Driver) CreateNetwork(req *network.CreateNetworkRequest) error {
	n, err := newNetwork(req)
	if err == nil {
		err = d.createNetwork(n)
	}
	return d.said("create network", err, "network", req.NetworkID)
}

func (d *Driver) createNetwork(n *Network) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n.Parent == "" {
		n.Parent, n.Internal = dummyName(n.ID), true
	}
	others, err := d.networks.all()
	if err != nil {
		return err
	}
	for _, o := range others {
		if o.Parent != n.Parent {
			continue
		}
		if passthru := maps.Passthru.String(); o.Mode == passthru || n.Mode == passthru {
			return fmt.Errorf("option parent: %w: network %.12s has %s, and mode passthru leaves nothing to others", loader.ErrBusy, o.ID, n.Parent)
		}
		n.Made = n.Made || o.Made
	}
	made, err := makeParent(n)
	if err != nil {
		return err
	}
	n.Made = n.Made || made
	if err := d.networks.save(n); err != nil {
		if made {
			err = errors.Join(err, removeParent(n.Parent))
		}
		return err
	}
	return nil
}

// DeleteNetwork forgets a network, and removes its parent if that was made and no
// other network has it.
func (d *Driver) DeleteNetwork(req *network.DeleteNetworkRequest) error {
	return d.said("delete network", d.deleteNetwork(req.NetworkID), "network", req.NetworkID)
}

func (d *Driver) deleteNetwork(id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.networks.load(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	others, err := d.networks.all()
	if err != nil {
		return err
	}
	shared := false
	for _, o := range others {
		shared = shared || o.ID != n.ID && o.Parent == n.Parent
	}
	if n.Made && !shared {
		if err := removeParent(n.Parent); err != nil {
			return err
		}
	}
	return d.networks.remove(id)
}

// CreateEndpoint makes an endpoint's sub-interface, in this namespace and down,
// with the addresses that Docker has chosen given to it.
func (d *Driver) CreateEndpoint(req *network.CreateEndpointRequest) (*network.CreateEndpointResponse, error) {
	mac, err := d.createEndpoint(req)
	if err := d.said("create endpoint", err, "network", req.NetworkID, "endpoint", req.EndpointID); err != nil {
		return nil, err
	}
	// What Docker has said is not to be said again.
	return &network.CreateEndpointResponse{Interface: &network.EndpointInterface{MacAddress: mac}}, nil
}

func (d *Driver) createEndpoint(req *network.CreateEndpointRequest) (mac string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.networks.load(req.NetworkID)
	if err != nil {
		return "", err
	}
	if _, err := makeParent(n); err != nil { // it may have gone with a reboot
		return "", err
	}
	spec, err := n.spec(req.EndpointID)
	if err != nil {
		return "", err
	}
	said := req.Interface
	if said == nil {
		said = &network.EndpointInterface{}
	}
	for _, a := range []string{said.Address, said.AddressIPv6} {
		if a == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(a)
		if err != nil {
			return "", fmt.Errorf("address %s: %w: %w", a, loader.ErrInvalid, err)
		}
		spec.Addrs = append(spec.Addrs, prefix)
	}
	if said.MacAddress != "" {
		if spec.MAC, err = net.ParseMAC(said.MacAddress); err != nil {
			return "", fmt.Errorf("mac address %s: %w: %w", said.MacAddress, loader.ErrInvalid, err)
		}
	}
	err = d.with(func(h *loader.Host) error {
		if err := h.Add(spec); err != nil {
			return err
		}
		l, err := h.Find(loader.Selector{Owner: spec.Owner, Name: spec.Name})
		if err != nil {
			return errors.Join(err, h.Del(loader.Selector{Owner: spec.Owner}))
		}
		if spec.MAC == nil && spec.Kind == maps.Macvlan {
			mac = l.MAC.String()
		}
		return nil
	})
	return mac, err
}

// DeleteEndpoint removes an endpoint's sub-interface, wherever it is, if it is
// still there.
func (d *Driver) DeleteEndpoint(req *network.DeleteEndpointRequest) error {
	err := d.with(func(h *loader.Host) error {
		return h.Del(loader.Selector{Owner: owner(req.EndpointID), Name: deviceName(req.EndpointID)})
	})
	if errors.Is(err, loader.ErrNotFound) {
		err = nil
	}
	return d.said("delete endpoint", err, "network", req.NetworkID, "endpoint", req.EndpointID)
}

// EndpointInfo tells what an endpoint's sub-interface is.
func (d *Driver) EndpointInfo(req *network.InfoRequest) (*network.InfoResponse, error) {
	value := map[string]string{}
	err := d.with(func(h *loader.Host) error {
		l, err := h.Find(loader.Selector{Owner: owner(req.EndpointID), Name: deviceName(req.EndpointID)})
		if err != nil {
			return err
		}
		value["parent"], value["mode"], value["datapath"] = l.Parent, l.Mode.String(), l.Rung.String()
		return nil
	})
	if err != nil {
		return nil, d.said("tell of endpoint", err, "network", req.NetworkID, "endpoint", req.EndpointID)
	}
	return &network.InfoResponse{Value: value}, nil
}

// Join tells Docker which device to move into the container, and its routes.
func (d *Driver) Join(req *network.JoinRequest) (*network.JoinResponse, error) {
	res, err := d.join(req)
	return res, d.said("join", err, "network", req.NetworkID, "endpoint", req.EndpointID, "sandbox", req.SandboxKey)
}

func (d *Driver) join(req *network.JoinRequest) (*network.JoinResponse, error) {
	n, err := d.networks.load(req.NetworkID)
	if err != nil {
		return nil, err
	}
	var l loader.Link
	err = d.with(func(h *loader.Host) (err error) {
		l, err = h.Find(loader.Selector{Owner: owner(req.EndpointID), Name: deviceName(req.EndpointID)})
		return err
	})
	if err != nil {
		return nil, err
	}
	res := &network.JoinResponse{InterfaceName: network.InterfaceName{SrcName: l.Name, DstPrefix: "eth"}}
	switch {
	case n.Internal:
		res.DisableGatewayService = true
	case l.Mode.Routed():
		// There is no link to have a gateway on.
		const connected = 1 // types.CONNECTED of libnetwork
		res.DisableGatewayService = true
		res.StaticRoutes = []*network.StaticRoute{{Destination: "0.0.0.0/0", RouteType: connected}}
		if n.Gateway6 != "" {
			res.StaticRoutes = append(res.StaticRoutes, &network.StaticRoute{Destination: "::/0", RouteType: connected})
		}
	default:
		res.Gateway, res.GatewayIPv6 = n.Gateway4, n.Gateway6
	}
	return res, nil
}

// Leave has nothing to do: Docker has moved the device back, or the container
// has gone with it.
func (d *Driver) Leave(*network.LeaveRequest) error { return nil }

// DiscoverNew and DiscoverDelete are told of other hosts, which do not matter.
func (d *Driver) DiscoverNew(*network.DiscoveryNotification) error    { return nil }
func (d *Driver) DiscoverDelete(*network.DiscoveryNotification) error { return nil }

// ProgramExternalConnectivity is told of published ports. The container is on the
// network itself, so that all its ports can be reached, and nothing is published.
func (d *Driver) ProgramExternalConnectivity(req *network.ProgramExternalConnectivityRequest) error {
	if ports, ok := req.Options["com.docker.network.portmap"].([]any); ok && len(ports) > 0 {
		d.log.Warn("published ports are ignored: the container is on the network itself", "network", req.NetworkID, "endpoint", req.EndpointID)
	}
	return nil
}

// RevokeExternalConnectivity has nothing to take back.
func (d *Driver) RevokeExternalConnectivity(*network.RevokeExternalConnectivityRequest) error {
	return nil
}

// errSwarm is for what only a swarm's manager asks.
var errSwarm = errors.New("networks of a swarm are not supported; create it on each host")

// AllocateNetwork is asked by a swarm's manager.
func (d *Driver) AllocateNetwork(*network.AllocateNetworkRequest) (*network.AllocateNetworkResponse, error) {
	return nil, errSwarm
}

// FreeNetwork is asked by a swarm's manager.
func (d *Driver) FreeNetwork(*network.FreeNetworkRequest) error { return errSwarm }
