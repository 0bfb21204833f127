"""Two-dimensional slices of the input space, cut into the regions on which a network is affine."""
