package exporter

// xidTexts explains the Xids that a rehearsal is likely to raise, with the wording of NVIDIA's Xid catalogue.
var xidTexts = map[int]string{
	0:   "No Error",
	13:  "Graphics Engine Exception",
	31:  "GPU memory page fault",
	43:  "GPU stopped processing",
	45:  "Preemptive cleanup, due to previous errors -- Most likely to see when running multiple cuda",
	46:  "GPU stopped processing",
	48:  "Double Bit ECC Error",
	62:  "Internal micro-controller halt",
	63:  "ECC page retirement or row remapping recording event",
	64:  "ECC page retirement or row remapper recording failure",
	68:  "NVDEC0 Exception",
	74:  "NVLINK Error",
	79:  "GPU has fallen off the bus",
	92:  "High single-bit ECC error rate",
	94:  "Contained ECC error",
	95:  "Uncontained ECC error",
	109: "Context Switch Timeout Error",
	119: "GSP RPC Timeout",
	120: "GSP Error",
	140: "Unrecovered ECC Error",
}

// XidText is what the label err_msg says about an Xid.
func XidText(xid int) string {
	if text, known := xidTexts[xid]; known {
		return text
	}
	return "Unknown Error"
}
