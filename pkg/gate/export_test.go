package gate

// ImageURI is imageURI, for its fuzz target.
func ImageURI(uri string) (ref string, image bool) { return imageURI(uri) }
