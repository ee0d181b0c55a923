package rig

import "slices"

// remember notes the id of a pod or VM, by which Traces finds what it left.
func (r *Rig) remember(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids = append(r.ids, id)
}

func (r *Rig) remembered() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ids)
}
