"""What is written to be looked at: sheets of images, and the page of a run."""
