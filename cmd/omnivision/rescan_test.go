package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/omnivision/omnivision/conveyor/rescan"
)

func TestRescanSaysWhatItLacks(t *testing.T) {
	dir := sourceCheckout(t)
	for name, test := range map[string]struct {
		args []string
		code int
		want string
	}{
		"a checkout of the source": {[]string{"--source", t.TempDir()}, exitUsage, "apps.yaml"},
		"a GitOps tree":            {[]string{"--source", dir, "--tree", t.TempDir()}, exitFailed, "fleet.yaml"},
		"a known output":           {[]string{"--source", dir, "-o", "xml"}, exitUsage, "use text or json"},
	} {
		t.Run(name, func(t *testing.T) {
			out, code, err := command(t, append([]string{"rescan"}, test.args...)...)
			if err == nil || code != test.code || !strings.Contains(err.Error(), test.want) {
				t.Errorf("exit code %d, want %d: %v, want %q\n%s", code, test.code, err, test.want, out)
			}
		})
	}
}

// The tree as its users get it has released nothing, no app in two clusters and neither gate nor
// steward nor podlogs: there is nothing to scan.
func TestRescanOfAFleetThatRunsNothingIsClean(t *testing.T) {
	for _, output := range []string{"text", "json"} {
		out, code, err := command(t, "rescan", "--source", sourceCheckout(t), "--trivy", filepath.Join(t.TempDir(), "none"), "-o", output)
		if err != nil || code != 0 || strings.Count(out, string(rescan.Unreleased)) != 7 {
			t.Errorf("exit code %d: %v\n%s", code, err, out)
		}
	}
}

func TestCleanFleetOfWhichNobodyWillKnowIsNoSuccess(t *testing.T) {
	if err := verdict(rescan.Report{Deployed: []rescan.Deployed{{Status: rescan.Clean, Attested: rescan.Unstated}}}); err == nil {
		t.Error("a scan that could not be stated passes")
	}
}

func TestVulnerableFleetIsWorseThanOneThatIsNotKnown(t *testing.T) {
	for name, test := range map[string]struct {
		statuses []rescan.Status
		code     int
	}{
		"clean":      {[]rescan.Status{rescan.Clean, rescan.Unreleased}, 0},
		"unknown":    {[]rescan.Status{rescan.Clean, rescan.Unknown}, exitFailed},
		"vulnerable": {[]rescan.Status{rescan.Unknown, rescan.Vulnerable}, exitUnhealthy},
	} {
		var report rescan.Report
		for _, status := range test.statuses {
			report.Deployed = append(report.Deployed, rescan.Deployed{Status: status})
		}
		err := verdict(report)
		code := 0
		if err != nil {
			code = exitFailed
		}
		if coded, ok := err.(codedError); ok {
			code = coded.code
		}
		if code != test.code {
			t.Errorf("%s: exit code %d, want %d: %v", name, code, test.code, err)
		}
	}
}
