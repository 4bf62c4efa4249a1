"""How fast the simulator is: `make bench`. Not part of `make test`."""
