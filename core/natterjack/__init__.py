"""Natterjack."""
