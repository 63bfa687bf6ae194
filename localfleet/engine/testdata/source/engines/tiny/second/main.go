package main

import "example.com/dep"

func main() { println("second", dep.Version) }
