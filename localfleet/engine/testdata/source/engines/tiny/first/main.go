package main

import "example.com/dep"

func main() { println("first", dep.Version) }
