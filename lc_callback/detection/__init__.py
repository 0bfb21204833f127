"""How sure a transition is, and what several runs have in common: curves in, grades and intervals out; NumPy only."""
