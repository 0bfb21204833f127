"""The experiments of docs/results.md, which ``sweep.py`` runs and reports."""
