"""What plugins offer: how it is found, loaded and called, each with a time limit."""
