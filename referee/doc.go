// Package referee holds xvlan to what the kernel's own macvlan and ipvlan do.
//
// Its test makes the same sub-interfaces by the same words, once with ip and
// once with xvlan on each of its rungs, sends the same frames from every side,
// and compares who received how many of them, with which bytes and as which
// packet type. A difference fails, unless it stands, with its reason, in the
// table of deliberate ones; one that stands there and no longer occurs fails,
// too. DIFFERENCES.md is made from that table.
//
//	go test ./referee -run TestReferee
//	go build -o xvlan ./cmd/xvlan && XVLAN_BIN=$PWD/xvlan go test -exec "vm -kernel 6.12" ./referee
//	go test ./referee -run TestReferee/macvlan_bridge -scenario 'broadcast' -v
//
// With -short, modes are tried only beside their own kind. The kernel's ipvlan
// and VLAN devices are compared where the kernel has them.
package referee
