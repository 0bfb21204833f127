"""Attacks, and what is attacked."""
