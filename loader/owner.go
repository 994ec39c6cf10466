package loader

import (
	"fmt"
	"strings"
)

// Whoever makes sub-interfaces for others, as container runtimes do, has to find
// them again by names of its own. The kernel keeps that: as the alias of the
// host leg, which is out of the container's reach, or on the kernel rung behind
// the reason in the alias of the device itself. So it goes when that goes.

// maxOwner is how long an owner may be: an alias has 255 bytes, and on the kernel
// rung there is a reason before it.
const maxOwner = 160

// ownerMark ends the reason in an alias.
const ownerMark = " | "

func checkOwner(owner string) error {
	if len(owner) > maxOwner {
		return fmt.Errorf("owner %s: %w: %d characters, at most %d fit", owner, ErrInvalid, len(owner), maxOwner)
	}
	if strings.Contains(owner, ownerMark) {
		return fmt.Errorf("owner %q: %w: it contains %q", owner, ErrInvalid, ownerMark)
	}
	return nil
}

// aliasOf makes the alias of a complete device of the kernel rung.
func aliasOf(reason, owner string) string {
	if owner != "" {
		reason += ownerMark + owner
	}
	return kernelAlias + reason
}

// reason says why a device is on the kernel rung.
func (k kernelLink) reason() string {
	reason, _, _ := strings.Cut(strings.TrimPrefix(k.link.Attrs().Alias, kernelAlias), ownerMark)
	return reason
}

func (k kernelLink) owner() string {
	_, owner, _ := strings.Cut(k.link.Attrs().Alias, ownerMark)
	return owner
}
