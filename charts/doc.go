// Package charts holds the Helm charts of OmniVision and proves them: what they
// render for each cloud, what their values refuse, and what their network
// policies let through. It exports nothing.
//
// Golden renders and the chart's README are written by
//
//	go generate ./charts
//
// and the tests fail while these are out of date.
package charts

//go:generate go test . -run "TestGolden|TestReadme" -update
