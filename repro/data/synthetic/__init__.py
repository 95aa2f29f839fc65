"""A synthetic stand-in for PASCAL-Person-Part, drawn by the package itself."""
