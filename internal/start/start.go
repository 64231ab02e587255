// Package start puts off the first garbage collection of a program that imports
// it, from 4 MiB of heap to 16: what packages set up fills 4 MiB before main, and
// most programs of waxseal's have ended before they would come to 16. From the
// first collection on it is Go's usual share. There is nothing to call: it has to
// come before the packages that fill the heap, and needs none of them.
package start

import (
	"runtime"
	"runtime/debug"
)

const (
	usual = 100
	first = 400
)

var _ = putOff()

func putOff() int {
	runtime.AddCleanup(new([64]byte), func(percent int) { debug.SetGCPercent(percent) }, usual)
	return debug.SetGCPercent(first)
}
