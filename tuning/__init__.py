"""Search over both stages: how well slices are reconstructed, and for how many bits."""
