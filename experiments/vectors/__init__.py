"""What the drivers of the plane and of 8x8 digits share."""
