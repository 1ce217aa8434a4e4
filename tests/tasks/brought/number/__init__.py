"""A fourth task, as a package of somebody else brings it: the number that an image shows."""
