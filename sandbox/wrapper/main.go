package wrapper

// Main is the body of the vmwrapper binary and returns its exit code.
func Main() int { return 2 }
