// Package image makes the container images that the local fleet's registry
// serves under their production names.
//
// On a machine with internet access an upstream image is upstream's own. Where
// that cannot be pulled, the image is assembled here from the same upstream
// version, built from its Go module (package engine) or taken from Debian's
// package; Image.Substitute then says so in a sentence for `omnivision status`.
//
// Assembly needs no container runtime and runs nothing of what it packs: layers
// are tars that are written entry by entry, in sorted order and with fixed
// times, so the same input is the same digest. They are not compressed; they
// travel over the loopback and are unpacked by the nodes of this machine.
//
// Limits: images are for the platform of this machine, and the Debian packages
// are those that its mirror has on the day.
package image
