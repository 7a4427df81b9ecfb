"""What is written to be looked at: sheets of images."""
