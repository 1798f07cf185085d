"""Other implementations of the x86 parts, to play the same stimuli to."""
