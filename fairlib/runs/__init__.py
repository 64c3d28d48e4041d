"""Everything that touches the disk on behalf of a run: profiles, stages, manifests, notebooks, the book."""
