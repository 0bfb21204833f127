"""A model as a function of points, with its non-linearities in sight."""
