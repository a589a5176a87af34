"""A miniature world of emoji scenes with exact masks, for training and tests on small machines."""
