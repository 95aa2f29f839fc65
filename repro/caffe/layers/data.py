"""Layers that make their tops themselves."""
