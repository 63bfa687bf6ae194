package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/omnivision/omnivision/fleet"
	"github.com/omnivision/omnivision/forge"
	"github.com/omnivision/omnivision/forge/connect"
	"github.com/omnivision/omnivision/plan"
	"github.com/omnivision/omnivision/plan/pullrequest"
	"github.com/omnivision/omnivision/plan/revision"
)

// forgeLoginVariable names the user under whom the token comments, where the forge does
// not tell a token its own name, as GitHub does not tell an app.
const forgeLoginVariable = "OMNIVISION_FORGE_LOGIN"

// publishFlags say in which pull request a plan is published.
type publishFlags struct {
	number int64
	ca     string
	// fleet is the base's, and head the commit that is planned; known once both
	// trees were found.
	fleet *fleet.Fleet
	head  string
}

func (f *publishFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.Int64Var(&f.number, "pull-request", 0, "publish the plan in this pull request of fleet.yaml's repository: one comment, and the status "+pullrequest.StatusContext)
	flags.StringVar(&f.ca, "forge-ca", "", "file of further certificate authorities of the forge")
}

// check refuses to publish what a proposed change could steer: the base says where the
// token is sent, and so a person must have said what the base is.
func (f *publishFlags) check(base, head string) error {
	switch {
	case f.number == 0:
		return nil
	case f.number < 0:
		return codedError{exitUsage, fmt.Errorf("--pull-request is %d: give the number of a pull request", f.number)}
	case base == "" || head == "":
		return codedError{exitUsage, errors.New("--pull-request needs --base and --head: it is commits that are compared, and the base says where the pull request is")}
	case os.Getenv(forgeTokenVariable) == "":
		return codedError{exitUsage, fmt.Errorf("%s is not set: it is the token that comments on the pull request", forgeTokenVariable)}
	}
	return nil
}

// found keeps what publishing needs of both trees.
func (f *publishFlags) found(base *revision.Tree, head string) (err error) {
	if f.number == 0 {
		return nil
	}
	f.head = head
	if f.fleet, err = fleet.Load(base); err != nil {
		return fmt.Errorf("reading from the base where the pull request is: %w", err)
	}
	return nil
}

// publish writes the plan, or why there is none, into the pull request.
func (f *publishFlags) publish(ctx context.Context, p *plan.Plan, reason error) error {
	interrupted := errors.Is(context.Cause(ctx), context.Canceled)
	if f.number == 0 || f.fleet == nil || interrupted {
		return nil
	}
	// That planning took too long is worth publishing too.
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), time.Minute, errors.New("the forge took longer than a minute"))
	defer cancel()
	repository, err := f.connect(ctx)
	if err != nil {
		return err
	}
	target := pullrequest.Target{Number: f.number, Head: f.head}
	if reason != nil {
		return pullrequest.Refusal(ctx, repository, target, reason)
	}
	return pullrequest.Plan(ctx, repository, target, p)
}

func (f *publishFlags) connect(ctx context.Context) (forge.Repository, error) {
	transport, err := transportWithCA(f.ca)
	if err != nil {
		return nil, err
	}
	return connect.Repository(ctx, f.fleet.Repository, connect.Options{
		Token: forge.StaticToken(os.Getenv(forgeTokenVariable)), Login: os.Getenv(forgeLoginVariable), Transport: transport,
	})
}
