"""Image features: the output of a frozen vision tower, computed once for each image and kept on disk."""
