"""Chips that change one thing of another chip."""
