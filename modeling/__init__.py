"""Models, one file per method, and the layers they share."""
