package preflight

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

// noSerializer is for a client that reads bytes alone.
var noSerializer = serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion()
