"""A network as a function of points: seen, repeated, counted, sliced and attacked."""
