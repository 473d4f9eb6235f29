"""DisaggScalers: pools that others run are read, decided about as our own are, and scaled."""
