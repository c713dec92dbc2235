"""One-step generators: settings, training, what is measured of them, and rows of their table."""
