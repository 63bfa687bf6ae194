// Package engine builds the upstream programs that the local fleet runs (the
// Kubernetes components, etcd, Argo CD, Gitea, ...) from the Go module proxy,
// keeps them in a store, and carries a store from one machine to another as one
// OCI artifact.
//
// An engine is a directory engines/NAME of a source checkout: a go.mod that
// pins every version, and perhaps a main package of our own where upstream's
// links more than the fleet needs. The version of an engine is read from that
// go.mod and from nowhere else.
//
// What is built is addressed by its input: the directory of an engine carries a
// key over its go.mod, go.sum, own sources, build flags and platform. A change
// to any of them is another directory, so a store never serves a stale program,
// and a machine without Go finds what it loaded by the same key.
//
// Limits: the store holds programs for the machine that it is on; nothing is
// cross-compiled. Old builds are not removed.
package engine
