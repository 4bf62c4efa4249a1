"""What was reported of real systems, beside simulations of the same: the tables of `conf/experiment`."""
