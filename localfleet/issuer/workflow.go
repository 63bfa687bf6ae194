package issuer

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// workflow is the part of a workflow's file that decides on tokens.
type workflow struct {
	Name        string      `yaml:"name"`
	Permissions permissions `yaml:"permissions"`
	Jobs        map[string]struct {
		Name        string      `yaml:"name"`
		Uses        string      `yaml:"uses"`
		Permissions permissions `yaml:"permissions"`
	} `yaml:"jobs"`
}

// permissions are a map of scopes, or one word for all of them.
type permissions struct {
	given   bool
	idToken bool
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (p *permissions) UnmarshalYAML(node *yaml.Node) error {
	p.given = true
	if node.Kind == yaml.ScalarNode {
		p.idToken = node.Value == "write-all"
		return nil
	}
	var scopes map[string]string
	if err := node.Decode(&scopes); err != nil {
		return err
	}
	p.idToken = scopes["id-token"] == "write"
	return nil
}

// applyWorkflow names the workflow and refuses a job that did not ask for the permission id-token: write, which
// GitHub then lends no token. Gitea tells a job's name and not its key, so jobs of one name are asked together: all
// of them must have it.
func (j *Job) applyWorkflow(content []byte, jobName string) error {
	var w workflow
	if err := yaml.Unmarshal(content, &w); err != nil {
		return fmt.Errorf("reading the workflow %s: %w", j.WorkflowPath, err)
	}
	j.Workflow = w.Name
	if j.Workflow == "" {
		j.Workflow = j.WorkflowPath
	}
	if !w.permits(jobName) {
		return fmt.Errorf("%w: %q of %s has not the permission id-token: write", ErrNotPermitted, jobName, j.WorkflowPath)
	}
	return nil
}

func (w workflow) permits(jobName string) bool {
	found := false
	for key, job := range w.Jobs {
		name := job.Name
		if name == "" {
			name = key
		}
		// A job of a matrix has its values behind the name.
		if jobName != name && !strings.HasPrefix(jobName, name+" (") && !strings.Contains(name, "${{") {
			continue
		}
		effective := w.Permissions
		if job.Permissions.given {
			effective = job.Permissions
		}
		// A job that another workflow describes would be certified as this one's.
		if !effective.idToken || job.Uses != "" {
			return false
		}
		found = true
	}
	return found
}
