"""Tables and measurements over several runs."""
