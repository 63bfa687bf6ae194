package dns

import (
	"strings"
	"testing"
)

func TestProductionNamesResolveToTheFleet(t *testing.T) {
	objects, err := Objects(Options{ServiceIP: "10.96.0.10", Address: "10.111.0.1", Hosts: []string{"quay.io", "github.com"}})
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	for _, object := range objects {
		kinds[object.GetKind()] = true
		if object.GetKind() != "ConfigMap" {
			continue
		}
		data := object.Object["data"].(map[string]any)["Corefile"].(string)
		for _, line := range []string{"github.com:53 quay.io:53 {", `answer "{{ .Name }} 30 IN A 10.111.0.1"`} {
			if !strings.Contains(data, line) {
				t.Errorf("Corefile lacks %q:\n%s", line, data)
			}
		}
	}
	for _, kind := range []string{"ConfigMap", "Deployment", "Service", "ServiceAccount", "ClusterRole", "ClusterRoleBinding"} {
		if !kinds[kind] {
			t.Errorf("no %s among the objects", kind)
		}
	}
}
