package loader

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"github.com/xvlan/xvlan/maps"
)

// Queue is what is said of the queue in which the kernel's macvlan defers the
// copies of broadcasts. The programs have none: they make the copies as the
// frame comes, and what a leg refuses is counted as drop_fanout. So it is for
// the kernel rung alone.
type Queue struct {
	Len   *uint32 // how many frames may wait on the parent; nil: as it is
	Limit *int32  // how many devices in a group defer its frames, -1 for none; nil: as it is
}

// macvlanCutoff is IFLA_MACVLAN_BC_CUTOFF of Linux 6.4, which the netlink
// library lacks.
const macvlanCutoff = 9

// defaultLimit is the limit of a new device, of which the kernel does not tell.
const defaultLimit int32 = 1

func (q Queue) said() bool { return q.Len != nil || q.Limit != nil }

// checkKind refuses it for what has no such queue.
func (q Queue) checkKind(kind maps.Kind) error {
	if q.said() && kind != maps.Macvlan {
		return fmt.Errorf("bcqueuelen, bclim: %w: this is %s", ErrInvalid, kind)
	}
	return nil
}

// set tells it to the kernel's macvlan. An older kernel passes over a limit that
// it does not know, so that is read again.
func (q Queue) set(in *space, l netlink.Link) error {
	if q.Len != nil {
		if err := setData(in, l, nl.IFLA_MACVLAN_BC_QUEUE_LEN, nl.Uint32Attr(*q.Len)); err != nil {
			return fmt.Errorf("set bcqueuelen of %s: %w", l.Attrs().Name, err)
		}
	}
	if q.Limit == nil {
		return nil
	}
	if err := setData(in, l, macvlanCutoff, nl.Uint32Attr(uint32(*q.Limit))); err != nil {
		return fmt.Errorf("set bclim of %s: %w", l.Attrs().Name, err)
	}
	data, err := macvlanData(in, l)
	if err == nil && nested(data, macvlanCutoff) == nil && *q.Limit != defaultLimit {
		err = fmt.Errorf("bclim: %w: the kernel's macvlan has it from Linux 6.4 on", ErrUnsupported)
	}
	return err
}
