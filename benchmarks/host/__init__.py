"""What the host pays: exits, events, routes, creation, starting. See `__main__`."""
