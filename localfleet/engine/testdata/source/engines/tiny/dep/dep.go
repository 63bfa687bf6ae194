// Package dep stands for an upstream module: its version is stamped.
package dep

var Version = "not stamped"
