package device

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxXid bounds the Xid codes that can be raised. NVIDIA's catalogue ends below 200; the room above it lets a
// rehearsal use a code that the catalogue gains later, and a typing mistake such as 7979 is still refused.
const MaxXid = 1023

// applicationXids are faults of the program that ran on the GPU, not of the GPU: NVIDIA's device plugin leaves the
// device healthy after them, because the next program will run well.
var applicationXids = []int{13, 31, 43, 45, 68, 109}

// Policy says which Xids condemn a device. The zero value is the production setting, that of NVIDIA's device
// plugin: every Xid does, 46, 48 and 79 among them, except the application errors 13, 31, 43, 45, 68 and 109.
type Policy struct {
	ignoreAll bool
	// overrides holds what was named explicitly: true condemns, false is ignored.
	overrides map[int]bool
	// condemnAll is `enable=all`, which condemns application errors too.
	condemnAll bool
}

// ParsePolicy reads the two lists that NVIDIA's device plugin takes as DP_DISABLE_HEALTHCHECKS and
// DP_ENABLE_HEALTHCHECKS: Xids separated by commas, or "all" (also "xids"). An Xid that is enabled condemns the
// device whatever disable says. Unlike NVIDIA's, which ignores a malformed entry, an error names it: a health check
// that was meant to be on and is not would make a rehearsal prove nothing.
func ParsePolicy(disable, enable string) (Policy, error) {
	disabled, disableAll, err := parseXidList(disable)
	if err != nil {
		return Policy{}, fmt.Errorf("list of Xids to ignore: %w", err)
	}
	enabled, enableAll, err := parseXidList(enable)
	if err != nil {
		return Policy{}, fmt.Errorf("list of Xids that condemn a device: %w", err)
	}
	p := Policy{ignoreAll: disableAll, condemnAll: enableAll, overrides: map[int]bool{}}
	for _, xid := range disabled {
		p.overrides[xid] = false
	}
	for _, xid := range enabled {
		p.overrides[xid] = true
	}
	return p, nil
}

// Condemns reports whether a device that raised xid is unhealthy until it is reset.
func (p Policy) Condemns(xid int) bool {
	if p.condemnAll {
		return true
	}
	if condemns, named := p.overrides[xid]; named {
		return condemns
	}
	return !p.ignoreAll && !slices.Contains(applicationXids, xid)
}

func parseXidList(list string) (xids []int, all bool, err error) {
	for entry := range strings.SplitSeq(list, ",") {
		switch entry = strings.ToLower(strings.TrimSpace(entry)); entry {
		case "":
		case "all", "xids":
			all = true
		default:
			xid, err := strconv.Atoi(entry)
			if err != nil || xid < 1 || xid > MaxXid {
				return nil, false, fmt.Errorf("%q is not an Xid: write numbers from 1 to %d separated by commas, or \"all\"", entry, MaxXid)
			}
			xids = append(xids, xid)
		}
	}
	return xids, all, nil
}
