"""What the drivers of images share."""
