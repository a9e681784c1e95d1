"""Programs that run in the lab's pods."""
